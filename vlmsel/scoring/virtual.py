"""Many target samples through few columns: virtual targets.

The gradients v_1 … v_T of all target samples may be too many to hold. With their norms D and the Gram matrix of their
directions, D⁻¹ V Vᵀ D⁻¹ = U Σ² Uᵀ, of which r columns are kept, the virtual targets W = Σ⁻¹ Uᵀ D⁻¹ V are weighted sums
that one stream over the samples adds up, and

    v_t ≈ Σ_k M_tk w_k,   M = D U Σ,   so that   ⟨P v_t, g⟩ ≈ Σ_k M_tk ⟨P w_k, g⟩

by one pass with r columns, whatever P is; exact where r = T, and then W = D⁻¹ V. Where r < T the Gram matrix is that of
sketches (random projections of both sides of every block): it decides which directions are kept, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlmsel import processes
from vlmsel.gradients import Factor
from vlmsel.gradients.projection import Projection, projected
from vlmsel.scorers.base import Metric
from vlmsel.scoring.source import Gradients, ModelSource
from vlmsel.scoring.targets import TargetPlan, added_up, stream

SKETCH = Projection(16, 16)
KEPT = 0.99  # share of the trace that the columns hold, where there are enough of them
TINY = 1e-12  # of the greatest eigenvalue: below it there is no direction

Metrics = Mapping[str, Metric]  # a scorer's norm by block; {} is the plain norm


class TargetSample(NamedTuple):
    """A sample of a target file: the file's name, its uid there, its weight where the file gives one, its loss."""

    file: str
    uid: int
    weight: float | None
    loss: float


@dataclass(frozen=True)
class Virtual:
    """How the target samples are made of the virtual targets.

    Attributes:
        samples: the target samples, in the order of the rows.
        mixing: M. [T, r]
        weights: Σ⁻¹ Uᵀ D⁻¹. [r, T]
        share: the part of the Gram matrix's trace that the r columns hold.
    """

    samples: tuple[TargetSample, ...]
    mixing: Tensor
    weights: Tensor
    share: float

    @classmethod
    def of(cls, samples: Sequence[TargetSample], squares: Tensor, gram: Tensor | None, columns: int) -> Virtual:
        """Choose the columns, in float64.

        Args:
            samples: the target samples.
            squares: ‖v_t‖². [T]
            gram: the Gram matrix of their (sketched) directions; None for a column per sample. [T, T]
            columns: the most that are kept.
        """
        norms = squares.double().sqrt()
        inverse = torch.where(norms > 0, 1 / norms, 0)
        if gram is None:
            return cls(tuple(samples), torch.diag(norms), torch.diag(inverse), 1.0)
        values, vectors = (found.flip(-1) for found in torch.linalg.eigh(gram.double()))
        held = values.clamp_min(0).cumsum(0) / values.clamp_min(0).sum()
        r = min(columns, int((held < KEPT).sum()) + 1, int((values > TINY * values[0]).sum()))
        sigma, u = values[:r].sqrt(), vectors[:, :r]
        return cls(tuple(samples), norms[:, None] * u * sigma, (u / sigma).T * inverse, float(held[r - 1]))


@dataclass(frozen=True)
class EachTarget:
    """The samples of all target files, each a target of its own.

    Attributes:
        plan: the files' plan.
        source: its batches.
        columns: the most virtual targets.
    """

    plan: TargetPlan
    source: ModelSource
    columns: int

    def look(self) -> Virtual:
        """Run over the samples once and choose the virtual targets."""
        rows = self._rows()
        losses, squares = torch.zeros(2, len(rows), dtype=torch.float64)
        sketches: dict[str, Tensor] = {}
        matrices = {block.name: SKETCH.matrices(block) for block in self.source.blocks}
        for found, places in self._stream("target samples"):
            losses[places] = found.losses.cpu().double()
            for name, factor in found.factors.items():
                squares[places] += factor.sq_norm().cpu().double()
                if len(rows) > self.columns:
                    small = projected(factor, matrices[name].to(factor.values)).dense().flatten(1).cpu().double()
                    sketches.setdefault(name, small.new_zeros(len(rows), small.shape[1]))[places] = small
        losses, squares = (sum(processes.gather(one)) for one in (losses, squares))
        samples = [sample._replace(loss=loss) for sample, loss in zip(self.samples(), losses.tolist(), strict=True)]
        gram = self._gram(sketches) if len(rows) > self.columns else None
        return Virtual.of(samples, squares, gram, self.columns)

    def _gram(self, sketches: Mapping[str, Tensor]) -> Tensor:
        """Return the Gram matrix of the sketches' directions, which several processes have some rows of. [T, T]"""
        count = len(self._rows())
        gram = torch.zeros(count, count, dtype=torch.float64)
        for block in self.source.blocks:
            size = torch.Size(SKETCH.shape(block.rows, block.cols)).numel()
            own = sketches.get(block.name, gram.new_zeros(count, size))
            processes.add_up(own)
            gram += own @ own.T
        norms = gram.diagonal().sqrt().clamp_min(1e-300)
        return gram / norms / norms[:, None]

    def gradients(self, virtual: Virtual) -> dict[str, Tensor]:
        """Run over the samples and add up the virtual targets. [r, rows, cols] per block"""
        sums: dict[str, Tensor] = {}
        for found, places in self._stream("virtual targets"):
            own = virtual.weights[:, places].to(found.losses.device)
            for name, factor in found.factors.items():
                part = factor.weighted_sum(own)
                sums[name] = sums[name].add_(part) if name in sums else part
        return added_up(sums, len(virtual.weights), self.source) if processes.count() > 1 else sums

    def squares(self, metrics: Sequence[Metrics]) -> Tensor:
        """Run over the samples and return ⟨P v_t, v_t⟩ by every metric. [metrics, T] float64"""
        total = torch.zeros(len(metrics), len(self._rows()), dtype=torch.float64)
        for found, places in self._stream("target norms"):
            for row, metric in zip(total, metrics, strict=True):
                row[places] = squared_norms(found.factors, metric).cpu()
        return sum(processes.gather(total), torch.zeros_like(total))

    def samples(self) -> list[TargetSample]:
        """Name the samples in the order of the rows; losses are not known yet."""
        sets = zip(self.plan.names, self.plan.sets, strict=True)
        every = [(name, sample) for name, data in sets for sample in data.samples]
        chosen = (every[position] for position in self._rows())
        return [TargetSample(name, sample.uid, sample.weight, float("nan")) for name, sample in chosen]

    def _rows(self) -> dict[int, int]:
        """Return the row of each position of the plan's sets."""
        return {position: row for row, position in enumerate(sorted(self.plan.owners))}

    def _stream(self, what: str) -> Iterator[tuple[Gradients, list[int]]]:
        rows = self._rows()
        for found, positions in stream(self.plan, self.source, what):
            yield found, [rows[position] for position in positions]


def squared_norms(factors: Mapping[str, Factor], metric: Metrics) -> Tensor:
    """Return Σ over blocks of ⟨P g, g⟩. [n] float64"""
    parts = [metric.get(name, Metric()).squares(factor).double() for name, factor in factors.items()]
    return torch.stack(parts).sum(0)
