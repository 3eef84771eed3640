"""What has no gradient is refused, or said where it is only a part: scores that are all 0 would choose the first k.

A target, the fit samples or the pool may well lack a gradient on some blocks (text has none on a projector, a fresh
adapter none on A); on all of them they have nothing to say.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from vlmsel import processes
from vlmsel.scoring.targets import is_virtual

MEND = (
    "choose --blocks that these samples use (text uses no projector; adapters must be switched on and not merged), or "
    "other samples"
)


def check_targets(names: Sequence[str], v: Mapping[str, Tensor]) -> None:
    """Refuse a target without gradient, and say on which blocks none has one.

    Args:
        names: what the targets are called.
        v: per block, their mean gradients. [targets, rows, cols]

    Raises:
        ValueError: names the first such target.
    """
    present = _present(v)
    for name, found in zip(names, present.any(0).tolist(), strict=True):
        if not found:
            raise ValueError(f"target {name}: no gradient on any block ({listed(v)}), all scores would be 0; {MEND}")
    _say("no target has", v, ~present.any(1))


def check_directions(names: Sequence[tuple[str, str]], stacks: Mapping[str, Tensor], v: Mapping[str, Tensor]) -> None:
    """Refuse a column whose h is zero although its target has a gradient, or not finite; say which blocks lack one.

    Args:
        names: scorer and target of each column.
        stacks: per block, h. [columns, rows, cols]
        v: per block, the targets' mean gradients. [targets, rows, cols]

    Raises:
        ValueError: names the first such column.
    """
    present = _present(stacks)
    finite = torch.stack([h.flatten(1).isfinite().all(1) for h in stacks.values()]).cpu().all(0)
    for (scorer, target), found, good in zip(names, present.any(0).tolist(), finite.tolist(), strict=True):
        if not good:
            raise ValueError(f"{scorer}: P v of target {target} is not finite; raise its damping or leave it out")
        if not found and not is_virtual(target):
            raise ValueError(
                f"{scorer}: no fit sample has a gradient on a block where target {target} has one, all scores would be "
                f"0; raise --fit_samples, or {MEND}"
            )
    of_targets = _present(v)
    lost = of_targets.repeat(1, present.shape[1] // of_targets.shape[1]) & ~present
    _say("no fit sample has", stacks, lost.any(1))


def check_scores(names: Sequence[tuple[str, str]], scores: Tensor, blocks: Collection[str]) -> None:
    """Refuse a column of zeros.

    Args:
        names: scorer and target of each column.
        scores: NaN where a sample was left out. [columns, n]
        blocks: the blocks' names.

    Raises:
        ValueError: names the first such column.
    """
    known = torch.isfinite(scores)
    zeros = known.any(1) & ~(known & (scores != 0)).any(1)
    for (scorer, target), zero in zip(names, zeros.tolist(), strict=True):
        if zero:
            raise ValueError(
                f"{scorer}/{target}: every score is 0, for no sample of the pool has a gradient in common with the "
                f"target on any block ({listed(blocks)}); {MEND}"
            )


def without_zeros(names: Sequence[tuple[str, str]], scores: Tensor) -> Tensor:
    """Leave the columns of zeros empty, and say so: the first samples of the pool would be their choice. [columns, n]

    A sample scorer gives one where pool and target have nothing in common, such as no word.
    """
    known = torch.isfinite(scores)
    zeros = known.any(1) & ~(known & (scores != 0)).any(1)
    for (scorer, target), zero in zip(names, zeros.tolist(), strict=True):
        if zero:
            print(f"{scorer}/{target}: every score is 0, for nothing is in common by {scorer}; the column is empty")
    return torch.where(zeros[:, None], torch.nan, scores)


def listed(names: Collection[str], most: int = 3) -> str:
    """Name the first few.

    >>> listed(["a", "b", "c", "d"], most=2)
    'a, b and 2 more'
    """
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _present(tensors: Mapping[str, Tensor]) -> Tensor:
    """Mark where there is a gradient. [blocks, columns]"""
    return torch.stack([own.flatten(1).any(1) for own in tensors.values()]).cpu()


def _say(who: str, tensors: Mapping[str, Tensor], without: Tensor) -> None:
    names = [name for name, is_without in zip(tensors, without.tolist(), strict=True) if is_without]
    if names and processes.is_main():
        entries = {name: own[0].numel() for name, own in tensors.items()}
        share = sum(entries[name] for name in names) / sum(entries.values())
        print(
            f"{who} a gradient on {len(names)} of {len(entries)} blocks, {100 * share:.3g} % of the entries, which "
            f"count for nothing: {listed(names)}"
        )
