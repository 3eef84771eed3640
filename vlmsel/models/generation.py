"""Greedy generation, batched: each answer is the one that its question alone would get.

Rows are padded on the left with positions counted from the mask, because right padding puts padding between question
and answer. Decoding stops at the tokenizer's EOS; special tokens are left out of the text.

Questions about one image begin with the same tokens up to the image's last patch, most of a prompt. In a batch that has
several questions about an image, these are read once per image, and their keys and values are shared out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from vlmsel.data.batches import Batch
from vlmsel.gradients.persample import evaluating
from vlmsel.models.language import cache_name, decoder_and_head, pad_id, unwrap
from vlmsel.models.logits import logits_at
from vlmsel.models.splice import IMAGE_ID
from vlmsel.models.vlm import VLM


@contextmanager
def replaced_settings(language_model: Any, settings: GenerationConfig) -> Iterator[None]:
    """Put a model's own generation settings aside: its sampling or repetition penalty would be mixed into ours."""
    own = language_model.generation_config
    language_model.generation_config = settings
    try:
        yield
    finally:
        language_model.generation_config = own


@torch.no_grad()
def generate(model: VLM, batch: Batch, tokenizer: Any, max_new_tokens: int) -> list[str]:
    """Answer the prompts of a batch (`input_ids` without answers, padded on either side) greedily.

    Raises:
        ValueError: the tokenizer has no EOS token, so that no answer would ever end.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no eos_token, so that no answer would end; set it")
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_id(tokenizer),
    )
    base = unwrap(model.language_model)
    with evaluating(model), replaced_settings(base, settings):
        ids = base.generate(**_inputs(model, batch))
    return [answer_text(row, tokenizer) for row in ids.tolist()]


def _inputs(model: VLM, batch: Batch) -> dict[str, Any]:
    """Return what `generate` of transformers needs to answer a batch."""
    end = shared_start(batch)
    if not end:
        plan, embeddings = model.embed(batch, left=True)
        return {"inputs_embeds": embeddings, "attention_mask": plan.attention_mask}
    assert batch.pixel_values is not None
    ids, mask = batch.input_ids, batch.attention_mask
    images = torch.arange(len(batch.pixel_values), device=model.device)
    start = ids[:1, :end].expand(len(images), -1)
    shown = {"pixel_values": batch.pixel_values, "image_index": images, "image_samples": images}
    _, embeddings = model.embed(Batch(start, start, torch.ones_like(start), images, **shown))
    cache = _read(model, embeddings)
    cache.batch_select_indices(batch.image_index)
    rest = Batch(ids[:, end:], ids[:, end:], mask[:, end:], batch.uids, None, images[:0], images[:0])
    plan, text = model.embed(rest, left=True)
    # generate takes the sequence as a whole and skips what the cache holds, whose embeddings may be anything
    held = text.new_zeros(1, 1, 1).expand(len(text), embeddings.shape[1], text.shape[2])
    full = torch.cat([mask.new_ones(len(mask), embeddings.shape[1]), plan.attention_mask], dim=1)
    name = cache_name(decoder_and_head(model.language_model)[0])
    return {"inputs_embeds": torch.cat([held, text], dim=1), "attention_mask": full, name: cache}


def _read(model: VLM, embeddings: Tensor) -> DynamicCache:
    """Run the decoder over embeddings [m, t, d] and return their keys and values."""
    decoder, _ = decoder_and_head(model.language_model)
    cache = DynamicCache(config=unwrap(model.language_model).config)
    decoder(inputs_embeds=embeddings, use_cache=True, **{cache_name(decoder): cache})
    return cache


def shared_start(batch: Batch) -> int:
    """Count the ids that all rows begin with, the image's placeholder being the last of them.

    0 where nothing would be saved: rows have other numbers of images than one, begin differently, or no two rows show
    the same image.
    """
    ids, rows = batch.input_ids, len(batch.input_ids)
    if batch.pixel_values is None or len(batch.pixel_values) == rows:
        return 0
    places = ids == IMAGE_ID
    if not torch.equal(batch.image_samples.cpu(), torch.arange(rows)) or int(places.sum()) != rows:
        return 0
    end = int(places[0].int().argmax()) + 1
    same = places[:, end - 1].all() and (ids[:, :end] == ids[0, :end]).all() and batch.attention_mask[:, :end].all()
    return end if same and batch.attention_mask[:, end:].any(dim=1).all() else 0


def answer_text(ids: list[int], tokenizer: Any) -> str:
    """Return the text before the first EOS, without special tokens and surrounding blanks."""
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


@torch.no_grad()
def next_token_logits(model: VLM, batch: Batch) -> Tensor:
    """Return the logits of the first token after each prompt, at least float32. [n, vocabulary]"""
    with evaluating(model):
        return logits_at(model.language_model, places=lambda states: states[:, -1], **_inputs(model, batch))
