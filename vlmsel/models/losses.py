"""The loss of a sample: mean cross entropy over its own supervised tokens (the answers and the EOS that closes each).

    l_i = -1/|S_i| sum over t in S_i of log p(label_t | tokens before t)

A batch's loss is the sum of its l_i, so that each sample's gradient is what it would be alone. Logits and the logarithm
are float32 or better.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmsel.models.language import decoder_and_head
from vlmsel.models.logits import changes_logits, logits_at
from vlmsel.models.splice import IGNORE


class TokenLosses(NamedTuple):
    """Cross entropy of every supervised token of a batch, in reading order."""

    losses: Tensor  # [s] float32 or float64
    rows: Tensor  # [s] the sample row that each token belongs to
    samples: int


def supervised(labels: Tensor, mask: Tensor) -> Tensor:
    """Mark the positions [n, t-1] whose next token is supervised: it has a label and real tokens on both sides."""
    real = mask.bool()
    return (labels[:, 1:] != IGNORE) & real[:, 1:] & real[:, :-1]


def supervised_counts(labels: Tensor, mask: Tensor) -> Tensor:
    """Return how many tokens of each sample enter its loss. [n, t] -> [n]"""
    return supervised(labels, mask).sum(dim=1)


def token_losses(language_model: nn.Module, labels: Tensor, attention_mask: Tensor, **inputs: Tensor) -> TokenLosses:
    """Run a causal LM on `input_ids` [n, t] or `inputs_embeds` [n, t, d] and score its supervised tokens."""
    chosen = supervised(labels, attention_mask)
    logits = logits_at(language_model, attention_mask, lambda states: states[:, :-1][chosen], **inputs)
    losses = F.cross_entropy(logits, labels[:, 1:][chosen], reduction="none")
    return TokenLosses(losses, chosen.nonzero()[:, 0], len(labels))


def sample_means(tokens: TokenLosses) -> Tensor:
    """Average token losses within each sample, [n]; a sample without supervised tokens gets NaN and harms no other."""
    zeros = tokens.losses.new_zeros(tokens.samples)
    counts = zeros.index_add(0, tokens.rows, torch.ones_like(tokens.losses))
    return zeros.index_add(0, tokens.rows, tokens.losses) / counts


def head_rows(language_model: nn.Module, labels: Tensor, attention_mask: Tensor) -> tuple[nn.Module, Tensor] | None:
    """Return a causal LM's output head, which sees one row per supervised token, and the sample of each such row.

    None where the head sees whole samples, as in models that are run as they are.
    """
    if changes_logits(language_model):
        return None
    _, head = decoder_and_head(language_model)
    return head, supervised(labels, attention_mask).nonzero()[:, 0]
