"""What a checkpoint folder holds: each file, what is adapted, dtypes, whether the projector is trained, which base.

Only headers are read; no weight is loaded.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vlmsel import runs

CONFIG = "vlmsel_config.json"
PURPOSE = {
    CONFIG: "what our model is built of",
    "config.json": "a Hugging Face model's configuration",
    "adapter_config.json": "LoRA's settings, in PEFT's form",
    "projector.safetensors": "the projector",
    "adapter_model.safetensors": "LoRA's weights",
    "classifier.json": "a classifier of vlmsel detect",
    "tokenizer.json": "the tokenizer",
    "phase.json": "how a run was trained",
}


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder holds a model, its own or a run's."""
    return folder.is_dir() and any(any(folder.rglob(name)) for name in (CONFIG, "config.json", "adapter_config.json"))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Say what a folder holds.

    Raises:
        ValueError: a file is damaged; names it.
    """
    files = {str(path.relative_to(folder)): _file(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    found: dict[str, Any] = {"files": files, "adapted": _adapted(folder)}
    if (path := next(iter(folder.rglob(CONFIG)), None)) is not None:
        about = runs.read_json(path)
        model = about["model"]
        found |= {"vision": model["vision"], "language": model["language"], "lora": model["lora"]}
        found |= {"projector trained": model["projector_trained"], "language trained": model["language_trained"]}
        found |= {"made for base": about.get("fingerprints", {})}
    elif (path := next(iter(folder.rglob("adapter_config.json")), None)) is not None:
        found["language"] = runs.read_json(path).get("base_model_name_or_path")
    return found


def _file(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"bytes": path.stat().st_size, "is": PURPOSE.get(path.name, "")}
    if path.suffix == ".safetensors":
        dtypes: Counter[str] = Counter()
        for shape, dtype in _tensors(path).values():
            count = 1
            for side in shape:
                count *= side
            dtypes[dtype] += count
        found["numbers by dtype"] = dict(dtypes)
    return found


def _tensors(path: Path) -> dict[str, tuple[list[int], str]]:
    try:
        with safe_open(str(path), "np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_shape(), str(part.get_dtype())) for name, part in parts.items()}
    except (SafetensorError, json.JSONDecodeError) as problem:
        raise ValueError(f"{path}: not a safetensors file, or damaged ({problem}); copy it again") from None


def _adapted(folder: Path) -> dict[str, int]:
    """Count the adapted modules by their last name."""
    names = {
        name.split(".lora_")[0]
        for path in folder.rglob("*.safetensors")
        for name in _tensors(path)
        if ".lora_A" in name or ".lora_embedding_A" in name
    }
    return dict(Counter(name.rpartition(".")[2] for name in sorted(names)))
