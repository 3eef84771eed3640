"""Log-likelihoods of continuations under a causal language model, by lm-evaluation-harness' rules.

    log p(continuation | context) = sum over t in continuation of log p(token_t | tokens before t)        [nats]

Context and continuation are tokenised together, and the continuation's tokens are those behind as many tokens as the
context alone has; blanks at the context's end move to the continuation first, because tokenizers join a blank to the
word behind it. What does not fit the model's positions is cut off at the left, BOS included. What differs: all tokens
are fed and not all but the last, so that a pair that is cut keeps one token of its context less; and special tokens
that a tokenizer puts behind a text (an EOS) are left out, where the harness would score them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlmsel.models.generation import evaluating
from vlmsel.models.language import check_head, pad_id, unwrap
from vlmsel.models.losses import token_losses
from vlmsel.models.splice import IGNORE

# What different architectures call the number of positions in their configuration.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx")
UNLIMITED = 10**9  # transformers' tokenizers say 1e30 where they know no limit


@dataclass(frozen=True)
class Likelihood:
    """What a continuation's tokens are worth together."""

    value: float  # sum of log p, in nats
    tokens: int  # of the continuation
    truncated: bool  # tokens of the context were cut off


@dataclass(frozen=True)
class Row:
    """A pair as the model reads it."""

    ids: list[int]  # [t] context and continuation
    count: int  # tokens of the continuation, at the end
    truncated: bool


def max_positions(model: Any, tokenizer: Any) -> int:
    """Return how many tokens a model reads at once: its configuration's word, else the tokenizer's.

    Raises:
        ValueError: neither says.
    """
    config = unwrap(model).config.get_text_config()
    known = [getattr(config, name, None) for name in POSITIONS] + [tokenizer.model_max_length]
    limit = next((int(value) for value in known if isinstance(value, int | float) and 0 < value < UNLIMITED), None)
    if limit is None:
        raise ValueError(f"neither {type(unwrap(model)).__name__} nor its tokenizer has a limit; set max_length")
    return limit


def token_ids(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Tokenise without the warning on length: rows are cut here, not by the tokenizer."""
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def appended(tokenizer: Any) -> int:
    """Count the special tokens that a tokenizer puts behind a text."""
    whole, bare = token_ids(tokenizer, "a"), token_ids(tokenizer, "a", special=False)
    extra = len(whole) - len(bare)
    starts = (start for start in range(extra + 1) if whole[start : start + len(bare)] == bare)
    return extra - next(starts, extra)


def start_token(tokenizer: Any) -> int:
    """Return the token that stands in for an empty context: BOS, else EOS.

    Raises:
        ValueError: the tokenizer has neither.
    """
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError("an empty context needs a bos or eos token, and the tokenizer has neither; set its bos_token")


def joint_ids(tokenizer: Any, context: str, continuation: str, behind: int) -> tuple[list[int], int]:
    """Tokenise a pair at full length; return ids and the number of continuation tokens, which may be 0.

    Args:
        tokenizer: of the model.
        context: what the continuation follows.
        continuation: what is scored.
        behind: special tokens that the tokenizer appends, see `appended`.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if not kept:
        scored = token_ids(tokenizer, continuation, special=False)
        return [start_token(tokenizer), *scored], len(scored)
    ids = token_ids(tokenizer, kept + continuation)
    ids = ids[: len(ids) - behind]
    return ids, max(0, len(ids) - (len(token_ids(tokenizer, kept)) - behind))


def encode_pair(tokenizer: Any, context: str, continuation: str, max_length: int) -> tuple[list[int], int]:
    """Tokenise a context and its continuation together; return ids [t] and the number of continuation tokens.

    Args:
        tokenizer: a Hugging Face tokenizer; special tokens that it puts in front of a text stay.
        context: what the continuation follows; an empty one is conditioned on BOS, or EOS where there is no BOS.
        continuation: what is scored.
        max_length: the most tokens to keep; tokens go at the left.

    Raises:
        ValueError: the continuation has no token, or more than max_length - 1.
    """
    (row,) = encode_rows(tokenizer, [(context, continuation)], max_length)
    return row.ids, row.count


def encode_rows(tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int) -> list[Row]:
    """Tokenise all pairs, see `encode_pair`.

    Raises:
        ValueError: continuations have no token, or too many; says how many, and which is the first.
    """
    behind = appended(tokenizer)
    encoded = [joint_ids(tokenizer, *pair, behind) for pair in pairs]
    empty = [i for i, (_, count) in enumerate(encoded) if count == 0]
    if empty:
        raise ValueError(
            f"{_which(empty, pairs)} yields no token of its own; give every choice a text that begins with a blank"
        )
    long = [i for i, (_, count) in enumerate(encoded) if count >= max_length]
    if long:
        tokens = encoded[long[0]][1]
        raise ValueError(
            f"{_which(long, pairs)} has {tokens} tokens, and max_length {max_length} has room for {max_length - 1} "
            "behind one of context; shorten it or take a model with more positions"
        )
    return [Row(ids[-max_length:], count, len(ids) > max_length) for ids, count in encoded]


def _which(found: list[int], pairs: Sequence[tuple[str, str]]) -> str:
    text = pairs[found[0]][1]
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    return f"{len(found)} of {len(pairs)} continuations cannot be scored, the first: number {found[0]} ({shown!r})"


def loglikelihoods(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    max_length: int | None = None,
    batch_tokens: int = 8192,
) -> list[Likelihood]:
    """Score the continuation of every (context, continuation), in the order given.

    Args:
        model: a Hugging Face causal language model, PEFT-wrapped or not, on any device.
        tokenizer: the model's.
        pairs: contexts and continuations.
        max_length: tokens per row, the model's positions when None.
        batch_tokens: tokens per batch, padding included; a longer row is a batch of its own.

    Raises:
        ValueError: a continuation has no token or does not fit; a result is not finite; a setting is wrong; the model
            changes its logits after the output head.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    check_head(unwrap(model))
    rows = encode_rows(tokenizer, pairs, _row_length(model, tokenizer, max_length))
    values = torch.full((len(rows),), torch.nan, dtype=torch.float64)
    with evaluating(model), tqdm(total=len(rows), desc="scoring choices", unit="choice", delay=2) as bar:
        for batch in length_batches([len(row.ids) for row in rows], batch_tokens):
            values[batch] = row_sums(model, [rows[i] for i in batch], pad_id(tokenizer))
            bar.update(len(batch))
    bad = (~torch.isfinite(values)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(f"{_which(bad, pairs)} has log-likelihood {values[bad[0]]}; look at the model's weights")
    return [Likelihood(value, row.count, row.truncated) for value, row in zip(values.tolist(), rows, strict=True)]


def _row_length(model: Any, tokenizer: Any, max_length: int | None) -> int:
    if max_length is None:
        return max_positions(model, tokenizer)
    config = unwrap(model).config.get_text_config()
    held = next((limit for name in POSITIONS if (limit := getattr(config, name, None))), max_length)
    if not 2 <= max_length <= held:
        raise ValueError(f"max_length must be from 2 to the model's {held} positions, got {max_length}")
    return max_length


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Deal rows of like length into batches, the longest first, so that too little memory shows at once.

    >>> list(length_batches([3, 9, 4, 2], batch_tokens=8))
    [[1], [2, 0], [3]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


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
