"""From a score per block to one score: lowest = most helpful, as before (rank and vote: arXiv 2511.04715).

    sum     I_i = Σ_l I_i^l, the influence itself; needs no score per block
    scaled  I_i = mean over blocks of I_i^l / rms_j(I_j^l): no block is loud
    rank    I_i = mean over blocks of the rank of I_i^l among all samples, from 0 to 1
    vote    I_i = - (blocks in which sample i is among the lowest 20 % + 1 - its mean rank) / blocks: votes first, and
            among equals the mean rank

Ties share their mean rank. All but the sum depend on which samples are scored together, and cost blocks · targets ·
samples float32 until the end of the pass. The targets' own samples (`affinity.safetensors`) are always sums.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from vlmsel.checks import check_choice

Aggregate = Literal["sum", "scaled", "rank", "vote"]
WAYS: tuple[Aggregate, ...] = ("sum", "scaled", "rank", "vote")
SHARE = 0.2  # of the samples that a block votes for


def check_aggregate(how: str) -> None:
    """Refuse another word."""
    check_choice(WAYS, aggregate=how)


def aggregate(scores: Float[Tensor, "blocks columns n"], how: Aggregate) -> Float[Tensor, "columns n"]:
    """Put the scores of all blocks together.

    >>> aggregate(torch.tensor([[[1.0, 2.0, 3.0]], [[-9.0, 0.0, -5.0]]]), "rank").tolist()
    [[0.1666666716337204, 0.6666666865348816, 0.6666666865348816]]
    """
    check_aggregate(how)
    if how == "sum":
        return scores.sum(0)
    if how == "scaled":
        rms = scores.double().square().mean(-1, keepdim=True).sqrt()
        return torch.where(rms > 0, scores / rms, 0).mean(0).to(scores)
    ranks = np.stack([(rankdata(block, axis=1) - 0.5) / max(1, scores.shape[-1]) for block in scores.cpu().numpy()])
    mean = ranks.mean(0)
    found = mean if how == "rank" else -((ranks < SHARE).sum(0) + 1 - mean) / len(ranks)
    return torch.from_numpy(found).to(scores)
