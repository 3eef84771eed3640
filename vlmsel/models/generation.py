"""Greedy generation, batched: each answer is the one that its question alone would get.

Rows are padded on the left with positions counted from the mask, because right padding puts padding between question
and answer. Decoding stops at the tokenizer's EOS; special tokens are left out of the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from vlmsel.models.language import decode, decoder_and_head, pad_id, unwrap
from vlmsel.models.vlm import VLM, BatchLike


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode within the block and back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


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
def generate(model: VLM, batch: BatchLike, tokenizer: Any, max_new_tokens: int) -> list[str]:
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
        plan, embeddings = model.embed(batch, left=True)
        ids = base.generate(inputs_embeds=embeddings, attention_mask=plan.attention_mask)
    return [answer_text(row, tokenizer) for row in ids.tolist()]


def answer_text(ids: list[int], tokenizer: Any) -> str:
    """Return the text before the first EOS, without special tokens and surrounding blanks."""
    end = ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else len(ids)
    return tokenizer.decode(ids[:end], skip_special_tokens=True).strip()


@torch.no_grad()
def next_token_logits(model: VLM, batch: BatchLike) -> Tensor:
    """Return the logits of the first token after each prompt, at least float32. [n, vocabulary]"""
    with evaluating(model):
        plan, embeddings = model.embed(batch, left=True)
        decoder, head = decoder_and_head(model.language_model)
        logits = head(decode(decoder, plan.attention_mask, inputs_embeds=embeddings)[:, -1])
    return logits if logits.dtype == torch.float64 else logits.float()
