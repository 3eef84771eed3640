"""Our own vision-language model as an engine: the template and the image handling that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from vlmsel.data.batches import Batch
from vlmsel.data.dataset import PromptEncoder, Reading
from vlmsel.data.encoding import text_ids
from vlmsel.data.sample import Turn
from vlmsel.data.templates import find_template
from vlmsel.evaluation.engines.base import Ask, Spellings, first_ids, within, word_scores
from vlmsel.evaluation.engines.likelihood import LanguageEngine
from vlmsel.models.generation import generate, next_token_logits
from vlmsel.models.vlm import VLM

KEPT = 64  # pictures that are kept as bytes, because the next question is often about the same one


class VLMEngine(LanguageEngine):
    """A model that `align` or `tune` wrote, or a preset; on text tasks its language model, adapters included."""

    kind = "a vlmsel model"

    def __init__(self, vlm: VLM) -> None:
        super().__init__(vlm.language_model, vlm.tokenizer)
        self.vlm, self.ahead = vlm, vlm.device.type != "cpu"
        config = vlm.vlm_config
        mode = f"{config.image_mode}, turned by EXIF" if config.exif else config.image_mode
        self.about = {"template": config.template, "image_mode": mode}
        self._encoder = cache(self._make_encoder)

    def _make_encoder(self, images: Path) -> PromptEncoder:
        pictures = self.vlm.pictures(Reading(images))
        assert pictures is not None, "a model that reads text only is no VLMEngine's"
        return PromptEncoder(self.tokenizer, self.vlm.vlm_config.template, lru_cache(KEPT)(pictures))

    def prepare(self, asks: Sequence[Ask]) -> Batch:
        items = []
        for number, ask in enumerate(asks):
            with within(f"question {ask.id}"):
                shown = [ask.image] if ask.image else []
                prompt = f"<image>\n{ask.prompt}" if shown else ask.prompt
                item = self._encoder(ask.images)(number, [Turn("human", prompt)], shown)
                self._require_room(len(item.input_ids) + len(shown) * (self.vlm.tower.patches - 1))
                items.append(item)
        return self.vlm.collate(items)

    def _require_room(self, length: int) -> None:
        """Refuse a prompt that leaves no position for an answer: cut anywhere, it would be another question."""
        limit = self.vlm.positions
        if limit is not None and length >= limit:
            raise ValueError(f"its prompt takes {length} positions, the model has {limit}; take a model with more")

    def generate(self, batch: Batch, max_new_tokens: int) -> list[str]:
        return generate(self.vlm, batch.to(self.vlm.device), self.tokenizer, max_new_tokens)

    def first_words(self, batch: Batch, words: Spellings) -> list[list[float]]:
        template = find_template(self.vlm.vlm_config.template)
        rows = [[text_ids(self.tokenizer, template.lead + word, template.after) for word in own] for own in words]
        chosen = first_ids(rows, words)
        return word_scores(next_token_logits(self.vlm, batch.to(self.vlm.device)), chosen)
