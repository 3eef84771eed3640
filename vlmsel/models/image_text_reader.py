"""How a Hugging Face image-text model reads samples: through its own processor, in its chat template or one of ours.

What stands in the text for an image depends on the sizes of a sample's images alone, for every processor; so that a
sample's size is known from the images' headers, by letting the processor read blank images of these sizes once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from vlmsel import runs
from vlmsel.data.chat import Chat, ChatEncoder, Span, require_supervised
from vlmsel.data.dataset import Reading, Size
from vlmsel.data.encoding import IGNORED, IMAGE_ID, encode
from vlmsel.data.image_text_batches import ImageTextItem, Tensors
from vlmsel.data.sample import Sample
from vlmsel.models.fingerprints import tokenizer_settings

OURS = ("input_ids", "attention_mask", "labels", "offset_mapping")  # what an item has of its own, or needs not
NEEDED = "5.17"  # of transformers: earlier ones lack some processors' `replace_image_token`, or all of them
KEPT = 4096  # sizes of images whose places are remembered
PLAIN = (bool, int, float, str, list, tuple)  # kinds of a processor's attributes that are settings
PROBE = Image.new("RGB", (64, 48), (120, 60, 30))


class ProcessorReader:
    """Encodes samples with a processor.

    `template` is the name of ours, None for the processor's own.

    Raises:
        ValueError: there is no template, or the processor cannot say what it puts in an image's place.
    """

    def __init__(self, processor: Any, template: str | None, source: str) -> None:
        own = getattr(processor, "chat_template", None)
        if isinstance(own, dict):
            own = own.get("default")
        if template is None and not own:
            raise ValueError(
                f"{source}: the processor has no chat template; name one with --template, such as vicuna_v1 for "
                "LLaVA-1.5"
            )
        if not _tells_places(type(processor)) or not getattr(processor, "image_token", None):
            raise ValueError(_untold(source, processor))
        if not processor.tokenizer.is_fast:
            raise ValueError(f"{source}: its tokenizer does not know the letters of its tokens; save a fast one there")
        self.processor, self.template, self.source = processor, template, source
        self.chat = ChatEncoder(processor.tokenizer, str(own), parts=True)
        self._places: dict[tuple[Span, ...], list[str]] = {}

    @property
    def name(self) -> str:
        """What the template is called."""
        return self.template or "the model's own chat template"

    @property
    def measures(self) -> Any:
        """All that the sizes of samples depend on, beside the samples and their pictures; this code among it."""
        own = self.processor
        plain = {name: repr(value) for name, value in vars(own).items() if isinstance(value, PLAIN)}
        settings = sorted((name, repr(value)) for name, value in own.to_dict().items())
        how = self.template, self.chat.template, type(own).__qualname__, sorted(plain.items()), settings
        return how, tokenizer_settings(own.tokenizer), runs.file_hash(Path(__file__))

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Tell by name what kind of tensors the processor makes: token, sample or packed."""
        token = self.processor.image_token
        found = self._process(f"{token}{token} ", [PROBE, PROBE])
        length = found["input_ids"].shape[1]
        kinds = {}
        for name, tensor in found.items():
            if isinstance(tensor, Tensor) and name not in OURS:
                by_token = tensor.ndim > 1 and tuple(tensor.shape[:2]) == (1, length)
                kinds[name] = "token" if by_token else "sample" if len(tensor) == 1 else "packed"
        return kinds

    @property
    def _suffixed(self) -> bool:
        """Whether what stands before the answers sees itself whole, as PaliGemma's does, and token types say so."""
        return "labels" in self.processor.model_input_names

    def encode(self, sample: Sample, images: Sequence[Image.Image], reading: Reading, limit: int) -> ImageTextItem:
        """Encode a sample with its images, cut at `limit` tokens.

        Raises:
            ValueError: it cannot be used; says why.
        """
        if self.template is not None:
            ids, labels, shown, found = self._in_ours(sample, images, reading)
        else:
            ids, labels, shown, found = self._in_its_own(sample, images, reading)
        if self._suffixed:
            first = next((i for i, label in enumerate(labels) if label != IGNORED), len(ids))
            found["token_type_ids"] = (torch.arange(len(ids)) >= first).long()[None]
        length = self._fitting(ids, labels, shown, limit)
        tensors: dict[str, Tensors] = {"token": {}, "sample": {}, "packed": {}}
        for name, tensor in found.items():
            if kind := self.kinds.get(name):
                tensors[kind][name] = (
                    tensor if kind == "packed" else tensor[0, :length] if kind == "token" else tensor[0]
                )
        return ImageTextItem(sample.uid, ids[:length], labels[:length], **tensors)

    def size(self, sample: Sample, sizes: Sequence[Span], reading: Reading, limit: int) -> Size:
        """Return the size of a sample whose images have these sizes (width, height).

        Raises:
            ValueError: it cannot be used; says why.
        """
        if self.template is not None:
            ids, labels, shown = self._spliced(sample, self.places(sizes), reading)
        elif not sizes:
            ids, labels, shown, _ = self._in_its_own(sample, [], reading)
        else:
            ids, labels, shown = self._in_places(sample, self.places(sizes), reading)
        length = self._fitting(ids, labels, shown, limit)
        return Size(length, sum(label != IGNORED for label in labels[1:length]))

    def places(self, sizes: Sequence[Span]) -> list[str]:
        """Return what stands in the text for each of a sample's images, whose sizes (width, height) decide."""
        key = tuple(sizes)
        if key and key not in self._places:
            if len(self._places) >= KEPT:
                self._places.clear()
            blank = [Image.new("RGB", size, (120, 60, 30)) for size in sizes]
            text = self.processor.image_token * len(blank)
            self._places[key] = [one[2] for one in self._replaced(self._process(text, blank), text)]
        return self._places[key] if key else []

    def _in_its_own(
        self, sample: Sample, images: Sequence[Image.Image], reading: Reading
    ) -> tuple[list[int], list[int], set[int], Any]:
        """Encode in the processor's chat template: ids, labels, the places of images, and all that it makes."""
        chat = self.chat.chat(sample.turns, len(images))
        found = self._process(chat.text, images)
        ids = found["input_ids"][0].tolist()
        offsets = [(int(start), int(end)) for start, end in found["offset_mapping"][0]]
        text = self._layout(chat.text, len(images))
        replaced = self._replaced(found, text) if images else []
        old, new = [one[0] for one in replaced], [one[1] for one in replaced]
        shown = _within(offsets, new)
        labels = self.chat.labels(ids, offsets, _moved(chat, text, old, new), reading.loss_on, shown)
        return ids, labels, shown, found

    def _in_places(
        self, sample: Sample, places: Sequence[str], reading: Reading
    ) -> tuple[list[int], list[int], set[int]]:
        """Encode in the processor's chat template, with what it puts in the images' places."""
        chat = self.chat.chat(sample.turns, len(places))
        text = self._layout(chat.text, len(places))
        head, *rest = text.split(self.processor.image_token)
        new, spans = head, []
        for place, piece in zip(places, rest, strict=True):
            spans.append((len(new), len(new) + len(place)))
            new += place + piece
        ids, offsets = self.chat.tokens(new)
        shown = _within(offsets, spans)
        moved = _moved(chat, text, _spans(text, self.processor.image_token), spans)
        return ids, self.chat.labels(ids, offsets, moved, reading.loss_on, shown), shown

    def _in_ours(
        self, sample: Sample, images: Sequence[Image.Image], reading: Reading
    ) -> tuple[list[int], list[int], set[int], Any]:
        """Encode in our template, with what the processor makes of its image tokens alone in the images' places."""
        if not images:
            ids, labels, shown = self._spliced(sample, [], reading)
            return ids, labels, shown, {}
        text = self.processor.image_token * len(images)
        found = self._process(text, images)
        replaced = self._replaced(found, text)
        ids, labels, shown = self._spliced(sample, [one[2] for one in replaced], reading)
        offsets = [(int(start), int(end)) for start, end in found["offset_mapping"][0]]
        alone = sorted(_within(offsets, [one[1] for one in replaced]))
        if len(alone) != len(shown):
            raise ValueError(
                "the processor writes an image otherwise where text stands beside it; leave --template out"
            )
        for name, kind in self.kinds.items():
            if kind == "token" and name in found:
                whole = found[name].new_zeros(1, len(ids), *found[name].shape[2:])
                whole[0, sorted(shown)] = found[name][0, alone]
                found[name] = whole
        return ids, labels, shown, found

    def _spliced(
        self, sample: Sample, places: Sequence[str], reading: Reading
    ) -> tuple[list[int], list[int], set[int]]:
        encoded = encode(
            sample.turns, len(places), self.processor.tokenizer, self.template or "", loss_on=reading.loss_on
        )
        images = iter(places)
        ids: list[int] = []
        labels: list[int] = []
        shown: set[int] = set()
        for token, label in zip(encoded.input_ids, encoded.labels, strict=True):
            own = [token]
            if token == IMAGE_ID:
                own = self.processor.tokenizer(next(images), add_special_tokens=False)["input_ids"]
                shown.update(range(len(ids), len(ids) + len(own)))
            ids += own
            labels += [label] * len(own)
        return ids, labels, shown

    def _fitting(self, ids: Sequence[int], labels: Sequence[int], shown: set[int], limit: int) -> int:
        """Return how many tokens are kept.

        Raises:
            ValueError: an image would be cut, or nothing supervised is left.
        """
        if shown and max(shown) >= limit:
            raise ValueError(
                f"its images take {len(shown)} places up to the {max(shown) + 1}th, more than {limit} positions"
            )
        require_supervised(labels[:limit], limit)
        return min(len(ids), limit)

    def _layout(self, text: str, images: int) -> str:
        """Return a text as the processor completes it before it looks for images, PaliGemma's with its BOS."""
        shown = [[PROBE] * images] if images else None
        return self.processor.prepare_inputs_layout(images=shown, text=[text])[1][0]

    def _process(self, text: str, images: Sequence[Image.Image]) -> Any:
        return self.processor(
            images=[list(images)] if images else None,
            text=[text],
            add_special_tokens=self.chat.adds_special(text),
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            return_tensors="pt",
        )

    def _replaced(self, found: Any, text: str) -> list[tuple[Span, Span, str]]:
        """Return of each image the letters of its token, those of what has taken its place, and what that is.

        Models that look at images beside the text (Mllama) leave the token as it is.
        """
        if not (own := found.get("text_replacement_offsets")):
            spans = _spans(text, self.processor.image_token)
            if int((found["input_ids"] == self.processor.image_token_id).sum()) != len(spans):
                raise ValueError(_untold(self.source, self.processor))
            return [(span, span, self.processor.image_token) for span in spans]
        return [(tuple(one["span"]), tuple(one["new_span"]), one["replacement"]) for one in own[0]]


def _tells_places(kind: type) -> bool:
    """Tell whether a class of processors says what it puts in an image's place, as its base class does not."""
    own = getattr(kind, "replace_image_token", None)
    return own not in (None, getattr(ProcessorMixin, "replace_image_token", None))


def _untold(source: str, processor: Any) -> str:
    return (
        f"{source}: {type(processor).__name__} of transformers {transformers.__version__} does not say what it puts in "
        f"an image's place, which classes that can say it do from {NEEDED} on; update transformers, or take a model of "
        "another class"
    )


def _spans(text: str, token: str) -> list[Span]:
    """Return where a token stands in a text."""
    found, start = [], text.find(token)
    while start >= 0:
        found.append((start, start + len(token)))
        start = text.find(token, start + len(token))
    return found


def _within(offsets: Sequence[Span], spans: Sequence[Span]) -> set[int]:
    """Return the places of tokens that lie, be it in part, within one of the spans, which are in order."""
    starts = [start for start, _ in spans]
    inside = set()
    for place, (first, last) in enumerate(offsets):
        number = bisect_right(starts, last - 1) - 1
        if last > first and number >= 0 and spans[number][1] > first:
            inside.add(place)
    return inside


def _moved(chat: Chat, text: str, old: Sequence[Span], new: Sequence[Span]) -> Chat:
    """Say where answers stand after `text` was made of the chat's, and its spans `old` became `new`."""
    same = next((i for i, (a, b) in enumerate(zip(chat.text, text, strict=False)) if a != b), len(chat.text))
    added = text.find(chat.text[same:], same) - same if same < len(chat.text) else 0
    ends = [end for _, end in old]
    gained = [0] + [own[1] - was[1] for was, own in zip(old, new, strict=True)]

    def move(letter: int) -> int:
        there = letter + (added if letter >= same else 0)
        return there + gained[bisect_right(ends, there)]

    return Chat(text, tuple((turn, (move(start), move(end))) for turn, (start, end) in chat.answers))
