"""Small matrices solved as one batch, for one at a time they are bound by the launching of operations.

On one CPU core 60 matrices of 16² took 1.2 ms together and 21 ms one by one by Schulz's iteration, 0.2 and 1.4 ms by
Cholesky; of 64² 12 and 33 ms, 1.9 and 3.1 ms. From 128² on there is nothing to gain on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlmsel.scorers.base import Accumulator
from vlmsel.scorers.curvature import Curvature
from vlmsel.solvers import cholesky, schulz

LARGEST, LARGEST_ON_CPU = 512, 64  # d up to which matrices are solved together
BATCH = 2**22  # entries of a batch: a quarter of one matrix of 4096²


def solve_together(accumulators: Sequence[Accumulator]) -> list[Tensor]:
    """Return each accumulator's h = P v, [targets, rows, cols]; small matrices of equal settings and size as a batch.

    Results and details are those of each one's own `solve` but for rounding.

    Raises:
        ValueError: as `solve` does.
    """
    solved: dict[int, Tensor] = {}
    groups: dict[Any, list[int]] = {}
    for number, accumulator in enumerate(accumulators):
        groups.setdefault(_group(accumulator) or number, []).append(number)
    for group in groups.values():
        ones = [accumulators[number] for number in group]
        step = max(1, BATCH // ones[0].size ** 2) if isinstance(ones[0], Curvature) else 1
        for start in range(0, len(ones), step):
            solved.update(zip(group[start:], _solve(ones[start : start + step]), strict=False))
    return [solved[number] for number in range(len(accumulators))]


def _group(accumulator: Accumulator) -> Any:
    """Return what accumulators of one batch have in common; None for one to be solved by itself."""
    if not isinstance(accumulator, Curvature) or accumulator.settings.start is not None:
        return None
    device, one = accumulator.targets.device, accumulator
    if one.size > (LARGEST_ON_CPU if device.type == "cpu" else LARGEST):
        return None
    return one.settings, one.size, one.dtype, device, one.targets.numel()


def _solve(ones: Sequence[Accumulator]) -> list[Tensor]:
    if len(ones) == 1:
        return [ones[0].solve()]
    group = [one for one in ones if isinstance(one, Curvature)]
    taken = [(one, *one.take()) for one in group]
    full = [(one, gram, shift) for one, gram, shift in taken if gram is not None]
    solved = iter(_batch(full) if full else [])
    return [torch.zeros_like(one.targets) if gram is None else next(solved) for one, gram, _ in taken]


def _batch(taken: list[tuple[Curvature, Tensor, float]]) -> list[Tensor]:
    first = taken[0][0]
    shifts = [shift for _, _, shift in taken]
    a = torch.stack([gram.to(device=first.targets.device, dtype=first.work) for _, gram, _ in taken])
    a.diagonal(dim1=1, dim2=2).add_(a.new_tensor(shifts)[:, None])
    for (one, _, _), bound in zip(taken, schulz.spectrum_bounds(a), strict=True):
        one.note_bound(bound)
    if first.settings.solver == "cholesky":
        return _by_cholesky(a, taken)
    return [_inverted(*each, found) for each, found in zip(taken, schulz.inverses(a, shifts), strict=True)]


def _inverted(one: Curvature, gram: Tensor, shift: float, found: schulz.Inverse) -> Tensor:
    one.note_inverse(found)
    if not found.converged:
        return one.solve_in_float64(gram, shift)
    return one.shaped(one.right(one.work) @ found.matrix)


def _by_cholesky(a: Tensor, taken: list[tuple[Curvature, Tensor, float]]) -> list[Tensor]:
    right = torch.stack([one.right(one.work).T for one, _, _ in taken])
    try:
        solved = cholesky.solve(a, right, overwrite=True)
    except ValueError:  # one of them is not positive definite: by itself it says which
        return [one.solve_directly(gram, shift) for one, gram, shift in taken]
    return [one.shaped(each.T) for (one, _, _), each in zip(taken, solved, strict=True)]
