"""A Hugging Face image-text-to-text model as an engine, with its processor, which handles the images.

A question is put in the processor's chat template, as a text that the processor reads. Where one of our templates is
asked for, the ids are those of our own training, token by token, with the places that the processor makes for the
image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from transformers import BatchFeature, GenerationConfig

from vlmsel.data.encoding import IMAGE_ID, generation_ids, text_ids
from vlmsel.data.images import load_image
from vlmsel.data.sample import Turn
from vlmsel.data.templates import IMAGE, find_template
from vlmsel.evaluation.engines.base import Ask, Spellings, first_ids, within, word_scores
from vlmsel.evaluation.engines.likelihood import LanguageEngine
from vlmsel.gradients.persample import evaluating
from vlmsel.models.generation import replaced_settings
from vlmsel.models.language import pad_id, set_padding

# What processors return with one value per token; token types are 0 for text.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ImageTextEngine(LanguageEngine):
    """An image-text-to-text model with its processor, which handles the images.

    Raises:
        ValueError: there is no template, ours is unknown, or the processor has no image token to use it with.
    """

    kind = "an image-text model"

    def __init__(self, model: Any, processor: Any, template: str | None = None) -> None:
        # a copy, because `prepare` sets the padding of the processor's while another thread uses this one
        super().__init__(model, copy.deepcopy(processor.tokenizer))
        if template is None and not getattr(processor, "chat_template", None):
            raise ValueError(
                "the model's processor has no chat template; name one with --template, such as vicuna_v1 for LLaVA-1.5"
            )
        if template is not None and not getattr(processor, "image_token", None):
            raise ValueError("the model's processor has no image token to put in a template; leave --template out")
        set_padding(processor.tokenizer)
        self.ahead = model.device.type != "cpu"
        self.processor, self.template = processor, None if template is None else find_template(template)
        self.about = {"template": template or "chat template of the processor", "image_mode": "that of the processor"}
        if self.template is None:
            self.chat("")  # a broken template shows before the first question

    def prepare(self, asks: Sequence[Ask]) -> Any:
        images: list[Any] = []
        prompts: list[Any] = []
        for ask in asks:
            with within(f"question {ask.id}"):
                shown = bool(ask.image)
                images += [[load_image(ask.images, ask.image)]] if shown else []
                prompts.append(self.chat(ask.prompt, shown) if self.template is None else self.ids(ask.prompt, shown))
        if self.template is None:
            return self._process(images or None, prompts)
        if not images:
            return BatchFeature(
                {**self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")}
            )
        marked = self._process(images, [self.processor.image_token] * len(asks), special=False)
        return put_images(marked, prompts, pad_id(self.tokenizer))

    def chat(self, prompt: str, shown: bool = True) -> str:
        """Put a prompt about one image, where it is shown, in the processor's chat template.

        Raises:
            ValueError: the template is broken, or the prompt spells the processor's image token.
        """
        content = [*([{"type": "image"}] if shown else []), {"type": "text", "text": prompt}]
        turns = [{"role": "user", "content": content}]
        if (token := getattr(self.processor, "image_token", None)) and token in prompt:
            raise ValueError(f"the prompt spells the image token {token}, which would stand for one more image")
        try:
            return self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except TemplateError as problem:
            raise ValueError(
                f"the processor's chat template cannot be used ({' '.join(str(problem).split())}); "
                "copy its file again, or name a template with --template"
            ) from None

    def ids(self, prompt: str, shown: bool = True) -> list[int]:
        """Encode a prompt about one image, where it is shown, in our template; -200 stands for the image."""
        turn = Turn("human", f"{IMAGE}\n{prompt}" if shown else prompt)
        return generation_ids([turn], int(shown), self.processor.tokenizer, self.template or "")

    def _process(self, images: list[Any] | None, texts: list[str], special: bool = True) -> Any:
        """Run the processor; a BOS that a text begins with is not put there again."""
        bos = self.tokenizer.bos_token
        begun = bos is not None and texts[0].startswith(bos)
        return self.processor(
            images=images,
            text=texts,
            padding=True,
            padding_side="left",
            add_special_tokens=special and not begun,
            return_tensors="pt",
        )

    @torch.no_grad()
    def generate(self, batch: Any, max_new_tokens: int) -> list[str]:
        ends = self._ends()
        rows = self._run(batch, max_new_tokens).sequences[:, batch["input_ids"].shape[1] :].tolist()
        kept = [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in kept]

    @torch.no_grad()
    def first_words(self, batch: Any, words: Spellings) -> list[list[float]]:
        chosen = first_ids([[ids for word in own for ids in self._spelt(word)] for own in words], words)
        (logits,) = self._run(batch, 1, output_logits=True).logits  # float32 whatever the model's dtype
        return word_scores(logits, chosen)

    def _spelt(self, word: str) -> list[list[int]]:
        """Encode a word as an answer begins with it: in our template behind its lead, else with and without a blank."""
        if self.template is not None:
            return [text_ids(self.tokenizer, self.template.lead + word, self.template.after)]
        prompt = self.chat("")
        closed = any(prompt.endswith(token) for token in self.tokenizer.all_special_tokens)
        return [text_ids(self.tokenizer, text, "" if closed else prompt[-1:]) for text in (word, f" {word}")]

    def _ends(self) -> list[int]:
        own = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
        if not ends:
            raise ValueError("neither tokenizer nor model has an eos token, so that no answer would end; set it")
        return sorted(ends)

    def _run(self, batch: Any, max_new_tokens: int, **more: Any) -> Any:
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=self._ends(),
            pad_token_id=pad_id(self.tokenizer),
            return_dict_in_generate=True,
            **more,
        )
        with evaluating(self.model), replaced_settings(self.model, settings):
            return self.model.generate(**batch.to(self.model.device, self.model.dtype))


def put_images(batch: Any, rows: Sequence[Sequence[int]], padding: int) -> BatchFeature:
    """Put what the processor made of an image token alone in the place of each row's image, padded on the left.

    `rows` are the ids of the prompts, -200 where the image stands.
    """
    real, places = batch["attention_mask"].bool(), [row.index(IMAGE_ID) for row in rows]
    spliced = {}
    for name in BY_TOKEN:
        if name in batch:
            own = [row if name == "input_ids" else [int(name == "attention_mask")] * len(row) for row in rows]
            images = [values[mask].tolist() for values, mask in zip(batch[name], real, strict=True)]
            full = [torch.tensor([*o[:p], *i, *o[p + 1 :]]) for o, p, i in zip(own, places, images, strict=True)]
            value, width = padding if name == "input_ids" else 0, max(map(len, full))
            spliced[name] = torch.stack([F.pad(one, (width - len(one), 0), value=value) for one in full])
    return BatchFeature({**batch, **spliced})
