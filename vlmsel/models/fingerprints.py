"""Fingerprints of backbones, so that a projector is never used with a tower it was not trained with.

A saved model names its backbones. Should the files behind a name change, every weight would still load and every
answer be wrong. The fingerprint is a hash of all one-dimensional parameters (norms, biases), which any training moves;
they are few, so that hashing a 7B model takes milliseconds. They are rounded to bfloat16 first, so that the dtype a
model is loaded in does not matter.
"""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """Hash a module's one-dimensional parameters; "" (no statement) for float16, whose rounding differs."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        if parameter.dim() != 1:
            continue
        if parameter.dtype == torch.float16:
            return ""
        digest.update(name.encode())
        digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def check_fingerprint(part: str, source: str, found: str, recorded: str) -> None:
    """Refuse a backbone that is not the recorded one; an empty fingerprint on either side makes no statement.

    Raises:
        ValueError: both are known and differ.
    """
    if found and recorded and found != recorded:
        raise ValueError(
            f"the {part} at {source} is not the one this model was trained with (fingerprint {found}, expected "
            f"{recorded}); restore that backbone or train the projector again"
        )
