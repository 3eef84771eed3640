"""Hugging Face models as engines: image-text-to-text models, causal language models, sequence classifiers.

A question about an image is put in the processor's chat template, or, where it has none or another is asked for, in one
of ours with the processor's image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from vlmsel.data.encode import text_ids
from vlmsel.data.images import load_image
from vlmsel.data.sample import Turn
from vlmsel.data.templates import IMAGE, find_template
from vlmsel.evaluation.engine import Ask, Engine, Spellings, about, first_ids
from vlmsel.evaluation.likelihood import loglikelihoods, max_positions
from vlmsel.models.generation import evaluating, replaced_settings
from vlmsel.models.language import pad_id


class LanguageEngine(Engine):
    """A causal language model; text tasks only."""

    kind = "a causal language model"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.about: dict[str, Any] = {}

    def loglikelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        found = loglikelihoods(self.model, self.tokenizer, pairs)
        self.cut += sum(one.truncated for one in found)
        return [one.value for one in found]


class ImageTextEngine(LanguageEngine):
    """An image-text-to-text model with its processor, which handles the images."""

    kind = "an image-text model"

    def __init__(self, model: Any, processor: Any, template: str | None = None) -> None:
        super().__init__(model, processor.tokenizer)
        if template is None and not getattr(processor, "chat_template", None):
            raise ValueError(
                "the model's processor has no chat template; name one with --template, such as vicuna_v1 for LLaVA-1.5"
            )
        self.processor, self.template = processor, None if template is None else find_template(template)
        self.about = {"template": template or "chat template of the processor", "image_mode": "that of the processor"}

    def prepare(self, asks: Sequence[Ask]) -> Any:
        images = []
        for ask in asks:
            with about(ask):
                images.append([load_image(ask.images, ask.image)])
        texts = [self.text(ask.prompt) for ask in asks]
        begun = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
        return self.processor(
            images=images,
            text=texts,
            padding=True,
            padding_side="left",
            add_special_tokens=not begun,
            return_tensors="pt",
        )

    def text(self, prompt: str) -> str:
        """Put a prompt about one image in the template."""
        if self.template is None:
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            turns = [{"role": "user", "content": content}]
            return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        text = self.template.generation_prompt([Turn("human", f"{IMAGE}\n{prompt}")])
        marked = text if self.template.image_position == "text" else IMAGE + text
        return marked.replace(IMAGE, self.processor.image_token)

    @torch.no_grad()
    def generate(self, batch: Any, max_new_tokens: int) -> list[str]:
        ends = self._ends()
        rows = self._run(batch, max_new_tokens).sequences[:, batch["input_ids"].shape[1] :].tolist()
        kept = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]

    @torch.no_grad()
    def first_words(self, batch: Any, words: Spellings) -> list[list[float]]:
        last = self.text("")[-1:]
        rows = [[text_ids(self.tokenizer, s, last) for w in own for s in (w, f" {w}")] for own in words]
        chosen = first_ids(rows, words)
        logs = self._run(batch, 1).logits[0].float().log_softmax(dim=1)
        return [[float(row[ids].logsumexp(dim=0)) for ids in chosen] for row in logs]

    def _ends(self) -> list[int]:
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        if not ends:
            raise ValueError("neither tokenizer nor model has an eos token, so that no answer would end; set it")
        return sorted(ends)

    def _run(self, batch: Any, max_new_tokens: int) -> Any:
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._ends(),
            pad_token_id=pad_id(self.tokenizer),
            return_dict_in_generate=True,
            output_logits=True,
        )
        with evaluating(self.model), replaced_settings(self.model, settings):
            return self.model.generate(**batch.to(self.model.device, self.model.dtype))


class ClassifierEngine(Engine):
    """A sequence classifier of two classes, whose logits are in the order of GLUE's."""

    kind = "a sequence classifier"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        if model.config.num_labels != 2:
            raise ValueError(
                f"the classifier has {model.config.num_labels} classes, GLUE's tasks have 2; give such a one"
            )
        self.model, self.tokenizer = model, tokenizer
        self.limit = max_positions(model, tokenizer)
        self.about = {"classes": [str(model.config.id2label[i]) for i in (0, 1)]}

    @torch.no_grad()
    def classify(self, texts: Sequence[Sequence[str]]) -> list[list[float]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        full = self.tokenizer(*columns, verbose=False)["input_ids"]
        self.cut += sum(len(ids) > self.limit for ids in full)
        batch = self.tokenizer(*columns, padding=True, truncation=True, max_length=self.limit, return_tensors="pt")
        with evaluating(self.model):
            return self.model(**batch.to(self.model.device)).logits.float().tolist()
