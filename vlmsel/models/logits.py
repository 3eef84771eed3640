"""A causal language model's logits where they are needed: by its head at these positions alone, or by its own forward.

The head is the largest map of a small batch, so that its logits are computed where somebody looks at them:

    logits_t = head(decoder(x)_t)

Models that do more than that (a multiplier, a soft cap, a transform before the head) are run as they are, at all
positions. Which of the two a model is, is found by trying it, not by its settings' names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vlmsel.gradients.persample import evaluating
from vlmsel.models.language import decode, decoder_and_head, run, unwrap

TRIED = 8  # tokens that a model is tried on
LOUD = 1024.0  # a power of two, so that nothing is rounded; a soft cap shows in large logits only
_FOUND = "_vlmsel_changes_logits"


def logits_at(language_model: Any, attention_mask: Tensor, places: Callable[[Tensor], Tensor], **inputs: Any) -> Tensor:
    """Run a causal LM on `input_ids` [n, t] or `inputs_embeds` [n, t, d] and return its logits, float32 or better.

    `places` chooses among hidden states [n, t, d], or logits [n, t, vocabulary].
    """
    if changes_logits(language_model):
        logits = places(run(unwrap(language_model), attention_mask, **inputs).logits)
    else:
        decoder, head = decoder_and_head(language_model)
        logits = head(places(decode(decoder, attention_mask, **inputs)))
    return logits if logits.dtype == torch.float64 else logits.float()


def changes_logits(language_model: Any) -> bool:
    """Tell whether a model's logits are others than its head's, which is tried once per model that has numbers."""
    model = unwrap(language_model)
    if _FOUND not in vars(model) and model.get_input_embeddings().weight.device.type != "meta":
        with evaluating(model):
            setattr(model, _FOUND, _try(model))
    return bool(vars(model).get(_FOUND))


@torch.no_grad()
def _try(model: Any) -> bool:
    """Compare logits with the head's on a few tokens, the head's made loud; equal steps give equal bits."""
    decoder, head = decoder_and_head(model)
    if head is None or decoder is None or decoder is model:
        return True
    heard = []

    def louder(module: Any, args: Any, logits: Tensor) -> Tensor:
        heard.append(module)
        return logits * LOUD

    weight = model.get_input_embeddings().weight
    ids = _plain_ids(model, len(weight)).to(weight.device)
    handle = head.register_forward_hook(louder)
    try:
        own = run(model, torch.ones_like(ids), input_ids=ids).logits
        through = bool(heard)  # some models use the head's weight without calling it
        made = head(decode(decoder, torch.ones_like(ids), input_ids=ids))
    finally:
        handle.remove()
    made = made if through else made / LOUD
    return not (own.shape == made.shape and torch.equal(own.to(made.dtype), made))


def _plain_ids(model: Any, count: int) -> Tensor:
    """Draw ids of tokens that stand for text alone. [1, TRIED]"""
    special = set(_special(model.config.to_dict()))
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return torch.tensor([[token for token in drawn if token not in special][:TRIED]])


def _special(settings: dict[Any, Any]) -> Iterator[int]:
    """Give the ids of tokens that a model's settings name."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif "token" in str(name):
            yield from (one for one in (value if isinstance(value, list) else [value]) if isinstance(one, int))
