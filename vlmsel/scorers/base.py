"""What a scorer is: frozen hyper-parameters of one of two kinds.

A gradient scorer is an influence I(i, t) = -Σ_l ⟨P_l v_t^l, g_i^l⟩ (lowest = most helpful); gradient scorers differ in
P. It names the statistic of the fit samples' gradients that P is made from (`statistic`), and gives h = P v for all
targets of a block (`solve`). On a block where every fit sample's gradient is zero, P v = 0 for every scorer that looks
at curvature or scale.

A sample scorer looks at the samples themselves and gives a number per target and sample (`score`), likewise lowest =
most helpful. A feature scorer is one that knows every sample by a vector: affinities are inner products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vlmsel.gradients import DenseFactor, Factor
from vlmsel.gradients.factors import spans
from vlmsel.gradients.projection import Matrices, lower_strips, projected
from vlmsel.scorers.statistics import BlockTargets, Statistic


class Scorer(ABC):
    """A scorer; final subclasses are frozen dataclasses of hyper-parameters with a `name`, the column prefix."""

    name: str

    @property
    def files(self) -> Mapping[str, str]:
        """What it reads beside samples and gradients: path by what it is. A run that has begun goes on with the same
        contents only."""
        return {}


class Metric(NamedTuple):
    """A scorer's own squared norm on a block, ⟨P g, g⟩ = ‖A g Bᵀ‖²: A [rows, rows] and B [cols, cols], None for an
    identity, a vector for a diagonal, and a factor; with weights, Σ_ij (A g Bᵀ)²_ij weights_ij, which are not negative.
    With `lower` there is one side alone, a lower triangular matrix, of which half is zero and left out.
    """

    rows: Tensor | None = None
    cols: Tensor | None = None
    scale: float = 1.0
    weights: Tensor | None = None
    lower: bool = False

    def squares(self, factor: Factor) -> Float[Tensor, " n"]:
        """Return ⟨P g, g⟩ of every sample, never negative."""
        if self.plain_sides:
            return factor.sq_norm() * self.scale
        if self.lower and (self.weights is not None or (self.rows is None) == (self.cols is None)):
            raise ValueError("a lower Metric has one side, a triangular matrix, and no weights")
        factor = factor.compact()
        if self.lower and isinstance(factor, DenseFactor):
            return self._lower_squares(factor) * self.scale
        turned = projected(factor, Matrices(self.rows, self.cols).to(factor.values))
        if self.weights is None:
            return turned.sq_norm() * self.scale
        weights = self.weights.to(factor.values).flatten()
        sums = [piece.flatten(1).square() @ weights for piece in turned.pieces()]
        return torch.cat(sums) * self.scale if sums else factor.sq_norm()

    def _lower_squares(self, factor: DenseFactor) -> Tensor:
        """Return ‖A g‖² or ‖g Bᵀ‖² in strips, which are added up before they leave the cache."""
        (side,) = (one for one in (self.rows, self.cols) if one is not None)
        total = factor.grads.new_zeros(factor.samples)
        for span in spans(factor.samples, factor.rows * factor.cols):
            grads = factor.grads[span] if self.rows is None else factor.grads[span].mT.contiguous()
            for strip in lower_strips(grads, side.to(grads)):
                total[span] += torch.linalg.vector_norm(strip, dim=(1, 2)).square()
        return total

    @property
    def plain_sides(self) -> bool:
        """Whether it is the plain norm but for a factor."""
        return self.rows is None and self.cols is None and self.weights is None

    @property
    def plain(self) -> bool:
        """Whether it is the plain norm."""
        return self.plain_sides and self.scale == 1

    def to(self, device: torch.device | str) -> Metric:
        """Return it with its matrices on a device."""
        sides = (self.rows, self.cols, self.weights)
        rows, cols, weights = (None if side is None else side.to(device) for side in sides)
        return Metric(rows, cols, self.scale, weights, self.lower)


class Solved(NamedTuple):
    """h = P v, [targets, rows, cols], and numbers worth recording with the scores, JSON-able."""

    h: Tensor
    details: dict[str, Any] = {}


class GradientScorer(Scorer):
    """A scorer of gradients."""

    @property
    def needs_mean_square(self) -> bool:
        """Whether the block's mean squared gradient entry must be known before the first update."""
        return False

    @property
    def needs_basis(self) -> bool:
        """Whether the eigenbasis of the block's token moments must be known before the first update."""
        return False

    @property
    def normalised(self) -> bool:
        """Whether its scores are divided by the norms of P v and of the sample's gradient, over all blocks together."""
        return False

    @property
    def first_order(self) -> bool:
        """Whether its scores at several checkpoints of a training run add up to the influence of the whole run."""
        return False

    def statistic(self, block: BlockTargets) -> Statistic | None:
        """Start what is gathered over the fit samples of a block; None where P does not depend on them."""
        return None

    @abstractmethod
    def solve(self, statistic: Any, v: Float[Tensor, "targets rows cols"]) -> Solved:
        """Return h = P v with the dtype and on the device of v; neither v nor, unless it is `spendable`, the statistic
        may be changed.

        Args:
            statistic: what `statistic` started, after all fit samples.
            v: mean gradient of each target: those that the statistic was started with.
        """

    def solve_bytes(self, block: BlockTargets, samples: int) -> int:
        """Bound the bytes that solving a block takes on its device beside the statistic, h included: as much as v
        unless a scorer knows better."""
        return block.targets.nbytes

    @property
    def own_norm(self) -> bool:
        """Whether unit affinities are cosines in the scorer's own metric, which `metric` gives; else in the plain one,
        where its own is too dear."""
        return False

    def metric(self, statistic: Any) -> Metric:
        """Return the norm that P defines on a block, where `own_norm` says so. The statistic is not changed."""
        return Metric()

    def metric_bytes(self, block: BlockTargets) -> int:
        """Return the bytes of `metric` on a block."""
        return 0

    def lighter(self) -> Mapping[str, GradientScorer]:
        """Return scorers like this one that hold less, by the words that say which settings those are."""
        return {}


def no_vectors(kind: str) -> Float[Tensor, "n d"]:
    """Refuse to look at samples without a model.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{kind} vectors of samples come from a model that reads them, and there is none here")


@dataclass(frozen=True)
class Samples:
    """Samples as a sample scorer sees them; texts and vectors are read when they are asked for.

    Attributes:
        uids: which samples. [n]
        losses: each one's loss, NaN where it is not known. [n]
        tokens: each one's length. [n]
        sources: the data set that each came from.
        read: gives each one's text.
        look: gives each one's vector of a kind, float32 [n, d]: `hidden`, the mean of the model's last hidden states,
            the later a token the heavier (token k of m by k / (1 + … + m)); `embedding`, the mean embedding of its
            tokens, and beside it for a model that sees, the mean feature of its pictures, each of norm 1 or 0.
        weights: how much each counts in a mean; equally where left out. [n]
    """

    uids: Int[Tensor, " n"]
    losses: Float[Tensor, " n"]
    tokens: Int[Tensor, " n"]
    sources: Sequence[str]
    read: Callable[[], Sequence[str]]
    look: Callable[[str], Tensor] = no_vectors
    weights: Float[Tensor, " n"] | None = None

    @cached_property
    def texts(self) -> Sequence[str]:
        """Each sample's text."""
        return self.read()

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """Put the samples of several parts one after the other."""
        uids, losses, tokens = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("uids", "losses", "tokens")
        )
        return cls(
            uids, losses, tokens, [source for part in parts for source in part.sources],
            lambda: [text for part in parts for text in part.texts],
            lambda kind: torch.cat([part.look(kind) for part in parts]),
            torch.cat([part.shares() for part in parts]),
        )  # fmt: skip

    def shares(self) -> Float[Tensor, " n"]:
        """Return each sample's part of a mean over all of them."""
        weights = torch.ones(len(self.uids)) if self.weights is None else self.weights.float()
        return weights / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)


class SampleScorer(Scorer):
    """A scorer that looks at no gradients."""

    @abstractmethod
    def score(self, samples: Samples, targets: Mapping[str, Samples]) -> Float[Tensor, "targets n"]:
        """Return a score per target and sample, lowest = most helpful.

        Args:
            samples: those to score.
            targets: the samples of each target by its name.
        """


class Features(NamedTuple):
    """Vectors of samples [n, d] and of target samples [T, d], dense or sparse, of which affinities a_ti = φ_t · φ_i."""

    samples: Tensor
    targets: Tensor


class FeatureScorer(SampleScorer):
    """A sample scorer that knows each sample by a vector, so that single target samples can choose by it.

    The score for a target is minus the mean affinity to its samples, by their weights.
    """

    @abstractmethod
    def features(self, samples: Samples, targets: Samples) -> Features:
        """Return the vectors of samples and of target samples; they are only multiplied with each other, and may depend
        on all of the samples, as the weights of words do."""

    @property
    def refusal(self) -> str:
        """Why it cannot work where targets are known by their gradients alone."""
        return (
            f"{self.name} compares samples with those of the targets, of which only gradients are here; take "
            "`vlmsel score`"
        )

    def score(self, samples: Samples, targets: Mapping[str, Samples]) -> Float[Tensor, "targets n"]:
        sizes = [len(own.uids) for own in targets.values()]
        if not sum(sizes):
            raise ValueError(self.refusal)
        found = self.features(samples, Samples.joined(list(targets.values())))
        shares = torch.block_diag(*(own.shares()[None] for own in targets.values())).to(found.targets)
        means = found.targets.T @ shares.T  # the sparse one comes first
        return -(found.samples @ means).T


def gradient_scorers(scorers: Sequence[Scorer]) -> list[GradientScorer]:
    """Return the scorers that look at gradients."""
    return [scorer for scorer in scorers if isinstance(scorer, GradientScorer)]


def sample_scorers(scorers: Sequence[Scorer]) -> list[SampleScorer]:
    """Return the scorers that look at the samples themselves."""
    return [scorer for scorer in scorers if isinstance(scorer, SampleScorer)]


def feature_scorers(scorers: Sequence[Scorer]) -> list[FeatureScorer]:
    """Return the scorers that know samples by vectors."""
    return [scorer for scorer in scorers if isinstance(scorer, FeatureScorer)]


def no_fit_gradient(v: Float[Tensor, "targets rows cols"], **details: Any) -> Solved:
    """Return P v = 0, for a block on which no fit sample has a gradient."""
    return Solved(torch.zeros_like(v), details)
