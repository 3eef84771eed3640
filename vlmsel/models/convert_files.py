"""Weights of checkpoints on disk: read tensor by tensor, whatever the files, and written in shards.

Safetensors are read lazily. A `.bin` or `.pt` is a pickle and is read as plain tensors only (`weights_only`), which
runs nothing that lies in it.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlmsel.models.damage import MEND, check_weights
from vlmsel.runs import write_json

SHARD = 5 * 2**30  # bytes
Lazy = dict[str, Callable[[], Tensor]]  # name -> reads the tensor


def weights_in(folder: Path, patterns: Iterable[str] = ("*.safetensors", "pytorch_model*.bin")) -> Lazy:
    """Find the weights of a folder; files of the first pattern that any file has, and no others.

    Raises:
        FileNotFoundError: there are none.
        ValueError: a file is damaged, or two hold the same name.
    """
    files = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    if not files:
        raise FileNotFoundError(f"{folder}: no weights ({' or '.join(patterns)}); copy them there")
    weights: Lazy = {}
    for file in files:
        more = weights_of(file)
        if twice := sorted(set(more) & set(weights)):
            raise ValueError(f"{file}: {twice[0]} lies in another file of the folder too; remove the one that is old")
        weights |= more
    return weights


def weights_of(file: Path) -> Lazy:
    """Find the weights of one file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds anything else than tensors by name.
    """
    if file.suffix == ".safetensors":
        check_weights(file)
        with safe_open(file, framework="pt") as opened:
            return {name: _reader(file, name) for name in opened.keys()}  # noqa: SIM118, no mapping
    content = read_pickle(file)
    if not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds other things than weights by name; it is no checkpoint of weights")
    return {name: constant(tensor) for name, tensor in content.items()}


def read_pickle(file: Path) -> dict[str, Any]:
    """Read a `.bin` or `.pt` of tensors, and of nothing that would run code.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than tensors.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; copy the whole folder again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than weights, or is damaged, and is not opened: it could run a program; save its "
            "weights alone"
        ) from None
    except (RuntimeError, EOFError) as problem:
        raise ValueError(f"{file} cannot be read ({' '.join(str(problem).split())[:200]}): {MEND}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} and no weights by name")
    return content


def _reader(file: Path, name: str) -> Callable[[], Tensor]:
    def read() -> Tensor:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor(name)

    return read


def constant(tensor: Tensor) -> Callable[[], Tensor]:
    """Give a tensor that is in memory the form of one that is read."""
    return lambda: tensor


def write_shards(weights: Iterable[tuple[str, Tensor]], folder: Path, limit: int = SHARD) -> None:
    """Write weights as `model.safetensors`, or as shards of at most so many bytes with an index, as transformers does.

    One shard is in memory at a time, beside what `weights` holds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, total = [], 0
    for number, shard in enumerate(_shards(weights, limit), 1):
        save_file(shard, folder / f"shard-{number}", metadata={"format": "pt"})
        names.append(list(shard))
        total += sum(map(_bytes, shard.values()))
    if len(names) == 1:
        (folder / "shard-1").rename(folder / "model.safetensors")
        return
    index: dict[str, str] = {}
    for number, held in enumerate(names, 1):
        file = f"model-{number:05d}-of-{len(names):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / file)
        index |= dict.fromkeys(held, file)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})


def _shards(weights: Iterable[tuple[str, Tensor]], limit: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in weights:
        if shard and sum(map(_bytes, shard.values())) + _bytes(tensor) > limit:
            yield shard
            shard = {}
        shard[name] = tensor.detach().clone(memory_format=torch.contiguous_format)  # tied ones share memory
    yield shard


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
