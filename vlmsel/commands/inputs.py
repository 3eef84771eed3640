"""What several commands read: a model by name or folder, LLaVA data for it, and the samples that cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmsel import processes, runs
from vlmsel.commands.features import open_features
from vlmsel.data.dataset import SampleDataset
from vlmsel.data.llava_json import Problem, read_samples
from vlmsel.evaluation.engine import Engine
from vlmsel.evaluation.engine_hf import ClassifierEngine, ImageTextEngine, LanguageEngine
from vlmsel.evaluation.engine_vlm import VLMEngine
from vlmsel.models import checkpoint, huggingface
from vlmsel.models.lora import lora_parameters
from vlmsel.models.presets import PRESETS, preset
from vlmsel.models.vlm import VLM, build

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


def open_model(source: str, device: str = "auto", dtype: str = "float32") -> VLM:
    """Build the preset `source`, or load the model that lies in the folder or run folder `source`.

    Raises:
        FileNotFoundError: neither a preset nor a folder with a model.
    """
    kind, place, folder = _dtype(dtype), pick_device(device), Path(source)
    for candidate in (folder, folder / "model"):
        if (candidate / checkpoint.CONFIG).is_file():
            return checkpoint.load(candidate, kind, place)
    if source in PRESETS:
        return build(preset(source), kind, place)
    raise FileNotFoundError(
        f"{source}: no model; give a preset ({', '.join(PRESETS)}), or a folder that align or tune wrote"
    )


def open_engine(source: str, device: str = "auto", dtype: str = "float32", template: str | None = None) -> Engine:
    """Load a model for evaluation: one of ours as `open_model` does, or a Hugging Face model from a folder.

    Args:
        source: a run folder, a model folder (ours, Hugging Face's, or PEFT's with adapters) or a preset.
        device: as for `pick_device`.
        dtype: float32 or bfloat16.
        template: the template that a Hugging Face model is asked with, when it is not its processor's own.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the model cannot be evaluated, its projector was never trained, or it has a template of its own.
    """
    if huggingface.is_hugging_face(source):
        return _hugging_face(source, pick_device(device), _dtype(dtype), template)
    model = open_model(source, device, dtype)
    if template not in (None, model.vlm_config.template):
        raise ValueError(f"{source} was trained with the template {model.vlm_config.template}; leave --template out")
    model.require_ready(source)
    return VLMEngine(model)


def _hugging_face(folder: str, device: torch.device, dtype: torch.dtype, template: str | None) -> Engine:
    kind = huggingface.kind_of(folder)
    if kind == "image-text":
        model, processor = huggingface.load_image_text(folder, dtype)
        return ImageTextEngine(model.to(device), processor, template)
    if template is not None:
        raise ValueError(f"{folder}: a {kind} model is asked without a template; leave --template out")
    if kind == "classifier":
        model, tokenizer = huggingface.load_classifier(folder, dtype)
        return ClassifierEngine(model.to(device), tokenizer)
    model, tokenizer = (huggingface.load_adapter if kind == "adapter" else huggingface.load_causal)(folder, dtype)
    return LanguageEngine(model.to(device), tokenizer)


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
    images: str | Path,
    max_length: int,
    features: str | Path | None = None,
    feature_dtype: str | None = None,
) -> Data:
    """Read a LLaVA file for a model and check every sample of it.

    With a folder of `features`, those that it lacks are computed first, and samples hold features instead of pictures.

    Raises:
        FileNotFoundError, ValueError: the file or the image folder as a whole cannot be used, or no sample can.
    """
    pool, sha256 = read_samples(path), runs.file_hash(path)
    tower, config = model.vision, model.vlm_config
    reader = None
    if features:
        names = (image for sample in pool.samples for image in sample.images)
        reader = open_features(model, images, names, features, feature_dtype)
    data = SampleDataset(
        pool.samples,
        images,
        model.tokenizer,
        config.template,
        size=tower.image_size,
        mode=config.image_mode,
        mean=tower.image_mean,
        image_tokens=tower.patches,
        max_length=max_length,
        features=reader,
    )
    problems = [*pool.problems, *data.check()]
    if not data.usable():
        first = f"; the first, sample {problems[0].uid}: {problems[0].reason}" if problems else ": the list is empty"
        raise ValueError(f"{path}: no usable sample{first}")
    return Data(Path(path), sha256, data, problems, len(pool.records))


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
