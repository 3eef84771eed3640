"""Whether a saved model is a checkpoint of the same training run as an open one: alike but for its trained parts."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from vlmsel import runs
from vlmsel.models import checkpoint
from vlmsel.models.assembly import saved_folder
from vlmsel.models.fingerprints import tokenizer_settings
from vlmsel.models.language import load_tokenizer
from vlmsel.models.subject import Subject
from vlmsel.models.vlm import VLM

FREE = ("vision", "vision_weights", "language", "projector_seed", "projector_trained")  # fingerprints say more


def find_checkpoint(subject: Subject, name: str, allow_untrained: bool = False) -> Path:
    """Return the folder of a saved model whose trained parts belong into the subject.

    `name` is its folder, or the run folder it lies in; a projector that was never trained needs `allow_untrained`.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: it is of another make.
    """
    if not isinstance(subject, VLM):
        raise ValueError(f"checkpoint {name}: a {type(subject).__name__} has no checkpoints; leave --checkpoints out")
    folder = saved_folder(name)
    if folder is None:
        raise FileNotFoundError(f"checkpoint {name}: no model; give a folder that align or tune wrote")
    config, fingerprints = checkpoint.read_config(folder)
    if not (allow_untrained or config.ready):
        raise ValueError(f"checkpoint {name}: its projector was never trained; leave it out or --allow_untrained true")
    own = asdict(subject.vlm_config)
    differ = [key for key, value in asdict(config).items() if key not in FREE and value != own[key]]
    differ += checkpoint.changed_backbones(subject, config, fingerprints)
    if differ:
        raise ValueError(f"checkpoint {name} is not of the same make as the model: {differ[0]} differs; leave it out")
    stored = folder / checkpoint.TOKENIZER
    own_rules = tokenizer_settings(subject.tokenizer)
    if stored.is_dir() and tokenizer_settings(load_tokenizer(str(stored))) != own_rules:
        raise ValueError(f"checkpoint {name} has another tokenizer than the model; leave it out")
    return folder


def folder_digest(folder: Path) -> str:
    """Hash a saved model's weights and configuration; versions of libraries aside."""
    config, fingerprints = checkpoint.read_config(folder)
    total = hashlib.sha256(repr((config, sorted(fingerprints.items()))).encode())
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(f"{path.relative_to(folder)} {runs.file_hash(path)}".encode())
    return total.hexdigest()
