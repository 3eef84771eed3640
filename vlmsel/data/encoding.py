"""Token ids and labels of a conversation, exact by construction.

A conversation is built piece by piece: BOS, then for each turn the ids of its own text, then EOS where the template
closes an answer. Labels copy the ids of answers and of the EOS after them and are -100 everywhere else, so no counting
of tokens decides what is supervised. Labels are not shifted; causal language models of transformers shift on their own.
With `loss_on="all"` the text of questions is supervised too, as in continued pretraining; images and BOS never are.

What differs from LLaVA and Prismatic, which tokenise a whole string or every turn on its own:

* A prompt of evaluation is the prefix of the ids trained on, whatever the tokenizer merges.
* Text that follows text is read in its place: the ids of " Red" after "Out:" are those it adds to the ids of ":". A
  tokenizer of SentencePiece kind that puts a blank before every text it is given thus adds none in the middle.
* Special tokens spelled in the data, `</s>` for one, stay letters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from vlmsel.data.sample import Turn
from vlmsel.data.templates import IMAGE, Segment, Template, find_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
IMAGE_ID = -200
LossOn = Literal["answers", "all"]


@dataclass(frozen=True)
class Encoded:
    """Ids of one conversation, with one placeholder per image; labels of equal length, -100 where not supervised."""

    input_ids: list[int]
    labels: list[int]
    images: int

    @property
    def supervised(self) -> int:
        """How many tokens the loss is taken on; nothing comes before the first."""
        return sum(label != IGNORED for label in self.labels[1:])

    def positions(self, image_tokens: int = 1) -> int:
        """Count the positions the model sees when every image takes `image_tokens` of them."""
        return len(self.input_ids) + self.images * (image_tokens - 1)


def encode(
    turns: Sequence[Turn],
    images: int,
    tokenizer: PreTrainedTokenizerBase,
    template: Template | str,
    max_length: int | None = None,
    image_tokens: int = 1,
    loss_on: LossOn = "answers",
) -> Encoded:
    """Turn a conversation about `images` images into ids and labels.

    Labels are those of the answers, or of all text. `max_length` counts positions, an image as `image_tokens` of them;
    what is longer is cut at the end.

    Raises:
        ValueError: unknown template, turns that do not alternate, as many `<image>` markers as images expected, an
            image that would be cut, or nothing supervised left. The message is the reason to leave the sample out.
    """
    _check_images(turns, images)
    template = _resolve(template)
    segments = template.segments(turns, has_images=images > 0)
    if loss_on == "all":
        segments = [replace(segment, supervised=True) for segment in segments]
    ids, labels = _lay(segments, images, tokenizer, template)
    if max_length is not None:
        kept = _fitting(ids, image_tokens, max_length)
        if IMAGE_ID in ids[kept:]:
            raise ValueError(f"an image of {image_tokens} positions does not fit into {max_length} positions")
        ids, labels = ids[:kept], labels[:kept]
    if all(label == IGNORED for label in labels):
        limit = "" if max_length is None else f" within {max_length} positions"
        raise ValueError(f"no supervised token is left{limit}")
    return Encoded(ids, labels, images)


def generation_ids(
    turns: Sequence[Turn], images: int, tokenizer: PreTrainedTokenizerBase, template: Template | str
) -> list[int]:
    """Give the ids of turns that end in a question: exactly those that come before the answer in training.

    Raises:
        ValueError: as `encode`, or the last turn is an answer.
    """
    _check_images(turns, images)
    template = _resolve(template)
    return _lay(template.segments(turns, images > 0, prompt=True), images, tokenizer, template)[0]


def begins_with_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokenizer begins every text with its BOS."""
    return tokenizer.bos_token_id is not None and _known(tokenizer).first == [tokenizer.bos_token_id]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, after: str = "") -> list[int]:
    """Give the ids of literal text that stands behind the text `after`, or behind a special token or image if empty.

    Raises:
        ValueError: no id boundary lies between `after` and `text`, or the text makes a special token.
    """
    return _text_ids(tokenizer, _known(tokenizer), text, after)


def _text_ids(tokenizer: PreTrainedTokenizerBase, known: _Known, text: str, after: str = "") -> list[int]:
    if not text:
        return []
    if not after:
        return known.literal(tokenizer, text)
    # the last letter decides how text goes on; the others serve tokenizers that merge it with what follows
    for anchor in (after[-1], "\n", "."):
        before, joint = known.anchor(tokenizer, anchor), known.literal(tokenizer, anchor + text)
        if joint[: len(before)] == before:
            return joint[len(before) :]
    raise ValueError(f"the tokenizer merges {text[:20]!r} with whatever stands before it, so no label can start there")


class _Known:
    """What every sample asks of a tokenizer anew and gets the same answer to."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        # an unknown letter is no special token of the text, even where <unk> is the padding or the end token as well
        self.special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        self.first = tokenizer("a")["input_ids"][:1]
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._direct = _calls_its_backend(tokenizer)
        self._anchors: dict[str, list[int]] = {}

    def literal(self, tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
        """Return the ids of literal text.

        Raises:
            ValueError: it makes a special token.
        """
        ids = self._ids(tokenizer, text)
        if special := self.special.intersection(ids):
            first = next(token for token in ids if token in special)
            raise ValueError(
                f"the tokenizer reads {tokenizer.convert_ids_to_tokens(first)!r} in the text as a special token"
            )
        return ids

    def anchor(self, tokenizer: PreTrainedTokenizerBase, letter: str) -> list[int]:
        """Return the ids of one letter, of which there are few."""
        if letter not in self._anchors:
            self._anchors[letter] = self.literal(tokenizer, letter)
        return self._anchors[letter]

    def _ids(self, tokenizer: Any, text: str) -> list[int]:
        """Call the tokenizer, or what it calls with these options, in a sixth of the time."""
        if not self._direct:
            return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        backend = tokenizer.backend_tokenizer
        if not backend.encode_special_tokens:
            backend.encode_special_tokens = True
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return backend.encode(text, add_special_tokens=False).ids


def _calls_its_backend(tokenizer: Any) -> bool:
    """Tell whether a tokenizer does nothing of its own to a text before its Rust backend sees it."""
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    own = type(tokenizer)
    plain = own.__call__ is PreTrainedTokenizerBase.__call__ and not hasattr(tokenizer, "_switch_to_input_mode")
    return plain and getattr(own, "_encode_plus", None) is PreTrainedTokenizerFast._encode_plus


_TOKENIZERS: WeakKeyDictionary[Any, tuple[tuple[Any, ...], _Known]] = WeakKeyDictionary()


def _known(tokenizer: PreTrainedTokenizerBase) -> _Known:
    """Return what is known of a tokenizer, asked again when its tokens have changed."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    state = (len(tokenizer), *(getattr(tokenizer, name) for name in names))
    found = _TOKENIZERS.get(tokenizer)
    if found is None or found[0] != state:
        found = _TOKENIZERS[tokenizer] = state, _Known(tokenizer)
    return found[1]


def _resolve(template: Template | str) -> Template:
    return find_template(template) if isinstance(template, str) else template


def _lay(
    segments: Sequence[Segment], images: int, tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[list[int], list[int]]:
    """Lay segments out as ids and labels."""
    spliced = images > 0 and template.image_position == "text"
    known = _known(tokenizer)
    bos = [] if known.bos is None else [known.bos]
    if not template.forces_bos and known.first != bos:
        bos = []
    ids: list[int] = []
    labels: list[int] = []
    after = ""
    for position, segment in enumerate(segments):
        opening = bos.copy() if segment.begins else []
        if position == 0 and template.image_position == "after_bos":
            opening += [IMAGE_ID] * images
        own = _segment_ids(tokenizer, known, segment, "" if opening else after, spliced)
        ids += opening + own
        labels += [IGNORED] * len(opening)
        labels += [i if segment.supervised and i != IMAGE_ID else IGNORED for i in own]
        after = "" if segment.ends or (spliced and segment.text.endswith(IMAGE)) else segment.text
    return ids, labels


def _segment_ids(
    tokenizer: PreTrainedTokenizerBase, known: _Known, segment: Segment, after: str, spliced: bool
) -> list[int]:
    """Read each piece between image markers on its own, as LLaVA does, the first in its place."""
    head, *rest = segment.text.split(IMAGE) if spliced else [segment.text]
    ids = _text_ids(tokenizer, known, head, after)
    for piece in rest:
        ids += [IMAGE_ID, *_text_ids(tokenizer, known, piece)]
    if segment.ends:
        if not isinstance(known.eos, int):
            raise ValueError("the tokenizer has no eos_token, so that no answer would end; set it")
        ids.append(known.eos)
    return ids


def _check_images(turns: Sequence[Turn], images: int) -> None:
    markers = sum(turn.text.count(IMAGE) for turn in turns)
    if images and markers != images:
        raise ValueError(f"the turns hold {markers} {IMAGE} markers for {images} images; the two must be equal")


def _fitting(ids: Sequence[int], image_tokens: int, max_length: int) -> int:
    """Count the leading ids that fit into `max_length` positions."""
    used = accumulate(image_tokens if token == IMAGE_ID else 1 for token in ids)
    return sum(positions <= max_length for positions in used)
