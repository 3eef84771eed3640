"""Log-likelihoods of continuations under a causal language model, by lm-evaluation-harness' rules.

    log p(continuation | context) = sum over t in continuation of log p(token_t | tokens before t)        [nats]

Context and continuation are tokenised together, and the continuation's tokens are those behind as many tokens as the
context alone has; blanks at the context's end move to the continuation first, because tokenizers join a blank to the
word behind it. What does not fit the model's positions is cut off at the left, BOS included. What differs: all tokens
are fed and not all but the last, so that a pair that is cut keeps one token of its context less; special tokens that a
tokenizer puts behind a text (an EOS) are left out, where the harness would score them; and a continuation that is
longer than the model takes is scored in several windows, where the harness stops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmsel.data.batches import length_batches
from vlmsel.evaluation.engines.base import Engine
from vlmsel.gradients.persample import evaluating
from vlmsel.models.language import max_positions, pad_id
from vlmsel.models.losses import token_losses
from vlmsel.models.splice import IGNORE


@dataclass(frozen=True)
class Row:
    """A pair as the model reads it."""

    ids: list[int]  # [t] context and continuation
    count: int  # tokens of the continuation, at the end
    truncated: bool


class LanguageEngine(Engine):
    """A causal language model; text tasks only."""

    kind = "a causal language model"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.about = model, tokenizer, {}

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        values, truncated = loglikelihoods(self.model, self.tokenizer, pairs)
        self.cut += sum(truncated)
        return values


def token_ids(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Tokenise without the warning on length: rows are cut here, not by the tokenizer."""
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def appended(tokenizer: Any) -> int:
    """Count the special tokens that a tokenizer puts behind a text."""
    whole, bare = token_ids(tokenizer, "a"), token_ids(tokenizer, "a", special=False)
    extra = len(whole) - len(bare)
    starts = (start for start in range(extra + 1) if whole[start : start + len(bare)] == bare)
    return extra - next(starts, extra)


def joint_ids(tokenizer: Any, context: str, continuation: str, behind: int) -> tuple[list[int], int]:
    """Tokenise a pair at full length; return ids and the number of continuation tokens, which may be 0.

    `behind` counts the special tokens that the tokenizer appends.

    Raises:
        ValueError: the context is empty, and the tokenizer has neither BOS nor EOS to stand in for it.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        scored = token_ids(tokenizer, continuation, special=False)
        starts = [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None]
        if not starts:
            raise ValueError("an empty context needs a bos or eos token, and the tokenizer has neither; set bos_token")
        return [starts[0], *scored], len(scored)
    ids = token_ids(tokenizer, kept + continuation)
    ids = ids[: len(ids) - behind]
    return ids, max(0, len(ids) - (len(token_ids(tokenizer, kept)) - behind))


def windows(ids: list[int], count: int, max_length: int) -> list[Row]:
    """Cut ids whose last `count` are scored into rows of at most `max_length`, each token scored once.

    One row, cut at the left, is enough for all but a continuation that fills the model by itself; that goes in steps of
    half a row, so that every token has at least half a row before it.

    >>> [(row.ids, row.count) for row in windows([1, 2, 3, 4, 5, 6], 5, 4)]
    [([1, 2, 3], 2), ([2, 3, 4, 5], 2), ([3, 4, 5, 6], 1)]
    """
    if count < max_length:
        return [Row(ids[-max_length:], count, len(ids) > max_length)]
    rows, start = [], len(ids) - count
    while start < len(ids):
        end = min(len(ids), start + max_length // 2)
        rows.append(Row(ids[max(0, end - max_length) : end], end - start, end > max_length))
        start = end
    return rows


def encode_pairs(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int) -> list[list[Row]]:
    """Tokenise every (context, continuation) together; the last tokens of a pair's rows make up its continuation.

    Special tokens that the tokenizer puts in front of a text stay; an empty context stands for BOS, or EOS where there
    is no BOS.

    Raises:
        ValueError: continuations have no token; says how many, and which is the first.
    """
    behind = appended(tokenizer)
    encoded = [joint_ids(tokenizer, *pair, behind) for pair in pairs]
    if empty := [i for i, (_, count) in enumerate(encoded) if count == 0]:
        raise ValueError(
            f"{_which(empty, pairs)} yields no token of its own; give every choice a text that begins with a blank"
        )
    return [windows(ids, count, max_length) for ids, count in encoded]


def _which(found: list[int], pairs: Sequence[tuple[str, str]]) -> str:
    text = pairs[found[0]][1]
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{len(found)} of {len(pairs)} continuations cannot be scored, the first: number {found[0]} ({shown!r})"


def loglikelihoods(
    model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], batch_tokens: int = 8192
) -> tuple[list[float], list[bool]]:
    """Return log p of every continuation in nats, and whether tokens of its context were cut off.

    The model may be PEFT-wrapped; a batch has at most `batch_tokens` with padding, or one row that is longer.

    Raises:
        ValueError: a continuation has no token; a result is not finite.
    """
    encoded = encode_pairs(tokenizer, pairs, max_positions(model, tokenizer))
    rows, owner = [row for own in encoded for row in own], [i for i, own in enumerate(encoded) for _ in own]
    sums = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    with evaluating(model):
        for batch in length_batches([len(row.ids) for row in rows], max_tokens=batch_tokens):
            sums[batch] = row_sums(model, [rows[i] for i in batch], pad_id(tokenizer))
    values = torch.zeros(len(pairs), dtype=torch.float64).index_add(0, torch.tensor(owner, dtype=torch.long), sums)
    if bad := (~torch.isfinite(values)).nonzero()[:, 0].tolist():
        raise ValueError(f"{_which(bad, pairs)} has log-likelihood {values[bad[0]]}; look at the model's weights")
    return values.tolist(), [any(row.truncated for row in own) for own in encoded]


@torch.no_grad()
def row_sums(model: Any, rows: Sequence[Row], padding: int) -> Tensor:
    """Sum log p over the continuation of each row, in nats. [n] float64 on the CPU"""
    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [padding] * (width - len(row.ids)) for row in rows])
    lengths = torch.tensor([len(row.ids) for row in rows])[:, None]
    counts = torch.tensor([row.count for row in rows])[:, None]
    places = torch.arange(width)
    mask = places < lengths  # [n, t]; from lengths, since a padding id may be a token of the text
    labels = ids.masked_fill(~mask | (places < lengths - counts), IGNORE)
    device = model.get_input_embeddings().weight.device
    found = token_losses(model, labels.to(device), mask.long().to(device), input_ids=ids.to(device))
    losses = found.losses.cpu().double()
    return -torch.zeros(len(rows), dtype=torch.float64).index_add(0, found.rows.cpu(), losses)
