"""What several commands read: a model by name or folder, LLaVA data for it, and the samples that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmsel import processes, runs
from vlmsel.data.dataset import SampleDataset
from vlmsel.data.encoding import LossOn
from vlmsel.data.formats import read_samples
from vlmsel.data.sample import Problem
from vlmsel.data.templates import find_template
from vlmsel.models import checkpoint, huggingface
from vlmsel.models.assembly import build
from vlmsel.models.features import open_features
from vlmsel.models.lora import lora_parameters
from vlmsel.models.presets import PRESETS, preset
from vlmsel.models.text import could_be_on_hub, open_text
from vlmsel.models.vision import VisionTower
from vlmsel.models.vlm import VLM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pick_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is this process's GPU, the first where there is one, or else the CPU."""
    if name == "auto":
        name = f"cuda:{processes.local_rank()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"no device is called {name!r}; give auto, cpu, cuda or cuda:<number>") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"there is no device {name}: torch sees {torch.cuda.device_count()} GPUs; give auto or cpu")
    return device


def check_counts(**numbers: int | None) -> None:
    """Refuse numbers below 1."""
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def open_together(out: str, config: str, worker: str = "") -> Path:
    """Open a run folder in the first of several processes; the others go on when it is open.

    `worker` tells jobs apart that work in one folder without knowing of each other.
    """
    if processes.is_main():
        runs.open_run(out, config, worker)
    processes.wait()
    return Path(out)


def without(config: str, setting: str) -> str:
    """Take a setting out of a resolved configuration that does not change the result."""
    return "".join(line for line in config.splitlines(keepends=True) if not line.startswith(f"{setting}:"))


def open_model(source: str, device: str = "auto", dtype: str = "float32", template: str | None = None) -> VLM:
    """Build the preset `source`, or load the model that lies in the folder or run folder `source`.

    A Hugging Face causal language model, or PEFT's adapters of one, becomes a model that reads text only, with
    `template`.

    Raises:
        FileNotFoundError: neither a preset nor a folder with a model.
        ValueError: the model has another template, or is of a kind that cannot be trained or scored.
    """
    kind, place = _dtype(dtype), pick_device(device)
    model = _own_model(source, kind, place)
    if model is not None:
        if template not in (None, model.vlm_config.template):
            raise ValueError(f"{source} has the template {model.vlm_config.template}; leave --template out")
        return model
    if template is not None:
        find_template(template)
    if huggingface.is_hugging_face(source) or could_be_on_hub(source):
        return open_text(source, template, kind, place)
    raise FileNotFoundError(
        f"{source}: no model; give a preset ({', '.join(PRESETS)}), or a folder that align or tune wrote or that holds "
        "a causal language model"
    )


def _own_model(source: str, dtype: torch.dtype, device: torch.device) -> VLM | None:
    """Load a model that we have written, or build a preset; None where `source` is neither."""
    for candidate in (Path(source), Path(source) / "model"):
        if (candidate / checkpoint.CONFIG).is_file():
            return checkpoint.load(candidate, dtype, device)
    return build(preset(source), dtype, device) if source in PRESETS else None


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


@dataclass(frozen=True)
class Data:
    """A LLaVA file as a model reads it: its samples, the problems of those that cannot be used, and how many it has.

    `sha256` is that of the file when it was read.
    """

    path: Path
    sha256: str
    samples: SampleDataset
    problems: list[Problem]
    total: int

    def report(self, out: Path, more: Sequence[Problem] = ()) -> None:
        """Write `out` (uid and reason of each sample left out) and print one line; no file when all are well."""
        problems = sorted([*self.problems, *more], key=lambda problem: problem.uid)
        if not problems:
            out.unlink(missing_ok=True)  # an earlier call may have had some
            return
        runs.write_json(out, [{"uid": problem.uid, "reason": problem.reason} for problem in problems])
        first = f"the first: sample {problems[0].uid}: {problems[0].reason}"
        print(f"{self.path}: {len(problems)} of {self.total} samples left out, listed in {out} ({first})")


def open_data(
    model: VLM,
    path: str | Path,
    images: str | Path | None,
    max_length: int,
    features: str | Path | None = None,
    feature_dtype: str | None = None,
    loss_on: LossOn = "answers",
) -> Data:
    """Read a LLaVA file for a model and check every sample of it.

    With a folder of `features`, those that it lacks are computed first, and samples hold features instead of pictures.
    Samples with images are of no use to a model that reads text only.

    Raises:
        FileNotFoundError, ValueError: the file or the image folder as a whole cannot be used, no folder is named and
            there are images, or no sample can be used.
    """
    pool, sha256 = read_samples(path), runs.file_hash(path)
    tower, config = model.vision, model.vlm_config
    reader = None
    if features and tower is None:
        raise ValueError("this model reads text only and has no features of images; leave --features out")
    if features and images is not None:
        names = (image for sample in pool.samples for image in sample.images)
        reader = open_features(model, images, names, features, feature_dtype)
    data = SampleDataset(
        pool.samples,
        images,
        model.tokenizer,
        config.template,
        mode=config.image_mode,
        max_length=max_length,
        features=reader,
        loss_on=loss_on,
        **({"size": None, "image_tokens": 1} if tower is None else _seen_by(tower)),
    )
    problems = [*pool.problems, *data.check()]
    if not data.usable():
        first = f"; the first, sample {problems[0].uid}: {problems[0].reason}" if problems else ": the list is empty"
        raise ValueError(f"{path}: no usable sample{first}")
    return Data(Path(path), sha256, data, problems, len(pool.records))


def _seen_by(tower: VisionTower) -> dict[str, Any]:
    """Say how a tower takes pictures."""
    return {"size": tower.image_size, "mean": tower.image_mean, "image_tokens": tower.patches}


def digest(model: VLM) -> str:
    """Hash what tells a model apart: projector and adapters, and the fingerprints of its backbones."""
    total = hashlib.sha256(repr(sorted(model.fingerprints.items())).encode())
    for name, parameter in [*model.projector.named_parameters(), *lora_parameters(model).items()]:
        total.update(name.encode())
        total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def pad_id(model: VLM) -> int:
    """Return the id that fills up short rows; masked, so that any will do where a tokenizer has none."""
    tokenizer: Any = model.tokenizer
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
