"""Llama 3.2 Vision's look at pictures, beside its text, made independent of what else is in a batch.

Pictures of a batch are filled up to equally many per sample. A token that may see none (it stands before its sample's
first one) is given all of its row instead, those that fill up included, and a sample without pictures, which alone
skips the layers that look at them, sees what fills up. Here such a token sees its own sample's pictures, as when the
sample is alone, and the states of a sample without pictures are 0: without biases its layers then add nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

STATES, MASK, SEEN = "cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask"


def own_pictures_only(model: Any) -> None:
    """Let a transformers model's text see its own sample's pictures only, where layers of their own look at them."""
    if not any(name.endswith("cross_attn") for name, _ in model.named_modules()):
        return
    if tiles := getattr(getattr(model, "model", None), "max_num_tiles", None):
        model.get_decoder().register_forward_pre_hook(partial(_own, int(tiles)), with_kwargs=True)


def _own(tiles: int, module: nn.Module, args: Any, given: dict[str, Any]) -> Any:
    """Forward pre-hook: states [n · pictures · tiles, patches, d], mask [n, 1, t, pictures · tiles · patches]."""
    states, mask, seen = (given.get(name) for name in (STATES, MASK, SEEN))
    if states is None or mask is None or seen is None:
        return None
    pictures = len(states) // len(mask) // tiles
    looked_at = ((mask == 0) & (seen != 0)).any(2).reshape(len(mask), pictures, -1).any(2)  # [n, pictures]
    own = looked_at.repeat_interleave(mask.shape[-1] // pictures, 1)[:, None, None]
    mask = mask.masked_fill((seen == 0) & ~own, torch.finfo(mask.dtype).min)
    any_ = looked_at.any(1).repeat_interleave(pictures * tiles)[:, None, None]
    return args, {**given, STATES: states * any_, MASK: mask}
