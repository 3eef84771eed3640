"""Our own vision-language model as an engine: the template and the image handling that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from vlmsel.data.batches import Batch, Collator
from vlmsel.data.dataset import Pictures, PromptEncoder
from vlmsel.data.encoding import text_ids
from vlmsel.data.sample import Turn
from vlmsel.data.templates import find_template
from vlmsel.evaluation.engines.base import Ask, Engine, Spellings, about, first_ids
from vlmsel.evaluation.engines.likelihood import loglikelihoods
from vlmsel.models.generation import generate, next_token_logits
from vlmsel.models.language import pad_id
from vlmsel.models.vlm import VLM

KEPT = 64  # pictures that are kept as bytes, because the next question is often about the same one


class VLMEngine(Engine):
    """A model that `align` or `tune` wrote, or a preset; on text tasks its language model, adapters included."""

    kind = "a vlmsel model"

    def __init__(self, model: VLM) -> None:
        self.model, self.ahead = model, model.device.type != "cpu"
        config = model.vlm_config
        self.about = {"template": config.template, "image_mode": config.image_mode}
        self._collate = Collator(pad_id(model.tokenizer))
        self._encoder = cache(self._make_encoder)

    def _make_encoder(self, images: Path) -> PromptEncoder:
        tower, config = self.model.tower, self.model.vlm_config
        pictures = Pictures(images, tower.image_size, config.image_mode, tower.image_mean)
        return PromptEncoder(self.model.tokenizer, config.template, lru_cache(KEPT)(pictures))

    def prepare(self, asks: Sequence[Ask]) -> Batch:
        items = []
        for number, ask in enumerate(asks):
            with about(ask):
                items.append(self._encoder(ask.images)(number, [Turn("human", f"<image>\n{ask.prompt}")], [ask.image]))
        return self._collate(items)

    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        return generate(self.model, batch.to(self.model.device), self.model.tokenizer, max_new_tokens)

    def first_words(self, batch: Batch, words: Spellings) -> list[list[float]]:
        template, tokenizer = find_template(self.model.vlm_config.template), self.model.tokenizer
        rows = [[text_ids(tokenizer, template.lead + word, template.after) for word in own] for own in words]
        chosen = first_ids(rows, words)
        logs = next_token_logits(self.model, batch.to(self.model.device)).log_softmax(dim=1)
        return [[float(row[ids].logsumexp(dim=0)) for ids in chosen] for row in logs]

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        found = loglikelihoods(self.model.language_model, self.model.tokenizer, pairs)
        self.cut += sum(one.truncated for one in found)
        return [one.value for one in found]
