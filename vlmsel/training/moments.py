"""Adam's second moments after a phase, which scores of gradients can be divided by (scorers/moments.py reads them)."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from vlmsel.models.subject import Groups
from vlmsel.runs import atomic_path

NAME = "moments.safetensors"


def write_moments(path: Path, groups: Groups, optimizer: torch.optim.AdamW) -> None:
    """Write v̂ = v / (1 - β₂ᵗ) of every parameter that learnt, by its name, float32."""
    beta = {id(p): group["betas"][1] for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, weights in (pair for group in groups.values() for pair in group.items()):
        if (state := optimizer.state.get(weights)) is not None:
            moments = state["exp_avg_sq"].float() / (1 - beta[id(weights)] ** float(state["step"]))
            found[name] = moments.cpu().contiguous()
    with atomic_path(path) as part:
        save_file(found, part)
