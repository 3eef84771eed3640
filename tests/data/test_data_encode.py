import copy
import json
from itertools import groupby
from pathlib import Path

import pytest
from template_text import per_turn_text, tokenize_with_images, training_text
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlmsel.data.encoding import IGNORED, IMAGE_ID, encode, generation_ids, text_ids
from vlmsel.data.sample import Turn
from vlmsel.data.templates import TEMPLATES

CASES = json.loads((Path(__file__).parents[1] / "cases/structure.json").read_text())
CORPUS = [
    "In: What color is the circle?\nOut: red",
    "USER: Is there a red square? ASSISTANT: yes and no",
    "[INST] Describe the image. [/INST] a small blue triangle at the left ",
] * 4
QUESTION, ANSWER = "What color is the circle?", "a red triangle"
IMAGE_TURNS = [
    Turn("human", f"<image>\n{QUESTION}"),
    Turn("gpt", ANSWER),
    Turn("human", "Is it small?"),
    Turn("gpt", "3, no"),
]
TEXT_TURNS = [Turn("human", QUESTION), *IMAGE_TURNS[1:]]


def trained(pre_tokenizer):
    alphabet = [chr(i) for i in range(33, 127)] + ["\n", "▁"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizer
    if isinstance(pre_tokenizer, pre_tokenizers.ByteLevel):
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def fast(tokenizer, **names):
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=["<image>"], **names)


def byte_level():
    return fast(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)))


def metaspace(scheme):
    """Pieces open with ▁ for a blank; `first` puts one before a text, `always` after every special token too."""
    tokenizer = trained(pre_tokenizers.Metaspace(prepend_scheme="always"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer)


def prepending():
    """Put ▁ before every text even if it begins with a blank: " red" alone would open with two."""
    tokenizer = trained(pre_tokenizers.Metaspace(prepend_scheme="always"))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    return fast(tokenizer)


TOKENIZERS = {
    "byte_level": byte_level(),
    "metaspace_first": metaspace("first"),
    "metaspace_always": metaspace("always"),
    "prepending": prepending(),
}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def tokenizer(request):
    return request.param


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES)
def template(request):
    return request.param


def rounds(template, turns=IMAGE_TURNS):
    return turns if template.questions else turns[:2]


def supervised_runs(encoded):
    """The runs of supervised ids, each a list."""
    pairs = zip(encoded.input_ids, encoded.labels, strict=True)
    return [[i for i, _ in run] for on, run in groupby(pairs, lambda pair: pair[1] != IGNORED) if on]


@pytest.mark.parametrize("case", CASES["tokenize_with_images"], ids=lambda case: repr(case["prompt"]))
def test_tokenize_with_images(case):
    def toy(text):
        return [1] + [10 + ord(letter) % 50 for letter in text]

    assert tokenize_with_images(case["prompt"], toy, 1, IMAGE_ID) == case["expected"]
    assert tokenize_with_images(case["prompt"], lambda text: toy(text)[1:], 1, IMAGE_ID) == case["expected"][1:]
    assert tokenize_with_images(case["prompt"], lambda text: toy(text)[1:], None, IMAGE_ID) == case["expected"][1:]


def test_supervised_are_exactly_answers_and_eos(tokenizer, template):
    turns = rounds(template)
    encoded = encode(turns, 1, tokenizer, template)
    runs = supervised_runs(encoded)
    answers = [turn.text for turn in turns if turn.role == "gpt"]
    if template.closes:
        assert [run[-1] for run in runs] == [tokenizer.eos_token_id] * len(answers)
    assert [tokenizer.decode(run, skip_special_tokens=True).strip() for run in runs] == answers
    assert all(label in (IGNORED, token) for token, label in zip(encoded.input_ids, encoded.labels, strict=True))


@pytest.mark.parametrize("case", CASES["templates"], ids=lambda case: case["template"])
def test_worked_cases_decode_to_their_text(case):
    tokenizer, template = TOKENIZERS["byte_level"], TEMPLATES[case["template"]]
    encoded = encode([Turn(role, text) for role, text in case["turns"]], 1, tokenizer, template)
    words = [tokenizer.decode([i]) if i != IMAGE_ID else "<image>" for i in encoded.input_ids]
    if template.image_position == "after_bos":
        assert encoded.input_ids.index(IMAGE_ID) == 1
        words.remove("<image>")
    assert "".join(words) == "<s>" + case["training_text"]


def test_first_supervised_token_is_the_first_of_the_answer(tokenizer, template):
    turns = [IMAGE_TURNS[0], Turn("gpt", "red")]
    run = supervised_runs(encode(turns, 1, tokenizer, template))[0]
    assert tokenizer.decode(run[:1]).strip() != ""
    if template.lead and template.closes and not template.trail:
        assert run == [*text_ids(tokenizer, " red", after=":"), tokenizer.eos_token_id]


def test_a_known_word_is_one_token_in_place(tokenizer):
    # each tokenizer knows "blank + red" as one piece; none may double the blank or give it a token of its own
    piece = "Ġred" if tokenizer is TOKENIZERS["byte_level"] else "▁red"
    assert tokenizer.convert_ids_to_tokens(text_ids(tokenizer, " red", after="Out:")) == [piece]


def test_ids_are_those_of_the_whole_string(tokenizer, template):
    turns = TEXT_TURNS[:2]
    text = training_text(template, turns)
    bos = [tokenizer.bos_token_id] if template.forces_bos else []
    whole = [*bos, *tokenizer.encode(text, add_special_tokens=False)]
    assert encode(turns, 0, tokenizer, template).input_ids == whole


@pytest.mark.parametrize("name", ["pure", "vicuna_v15", "llama2_chat"])
def test_ids_are_those_of_every_turn_on_its_own(tokenizer, name):
    # a SentencePiece-style tokenizer brings the blank before a turn, a byte-level one has to be given it
    lead = " " if tokenizer is TOKENIZERS["byte_level"] else ""
    ids, labels = [tokenizer.bos_token_id], [IGNORED]
    for turn, text in zip(TEXT_TURNS, per_turn_text(TEMPLATES[name], TEXT_TURNS), strict=True):
        answer = turn.role == "gpt"
        own = tokenizer.encode(lead + text if answer else text, add_special_tokens=False)
        ids, labels = [*ids, *own], [*labels, *(own if answer else [IGNORED] * len(own))]
    encoded = encode(TEXT_TURNS, 0, tokenizer, name)
    assert (encoded.input_ids, encoded.labels) == (ids, labels)


@pytest.mark.parametrize("images", [0, 1])
def test_plain_caption_is_read_on_its_own(tokenizer, images):
    turns = [Turn("human", "Describe it.\n<image>"), Turn("gpt", "red")]
    caption = tokenizer.encode("red\n", add_special_tokens=False)
    encoded = encode(turns, images, tokenizer, "plain")
    assert encoded.input_ids == [tokenizer.bos_token_id, *[IMAGE_ID] * images, *caption]
    assert supervised_runs(encoded) == [caption]


def test_text_position_matches_whole_string_with_images(tokenizer):
    template = TEMPLATES["vicuna_v1"]
    turns = IMAGE_TURNS[:2]

    def with_bos(text):
        return [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]

    expected = tokenize_with_images(training_text(template, turns), with_bos, tokenizer.bos_token_id, IMAGE_ID)
    assert encode(turns, 1, tokenizer, template).input_ids == expected


@pytest.mark.parametrize("turns, images", [(IMAGE_TURNS, 1), (TEXT_TURNS, 0)], ids=["image", "text"])
def test_prompt_is_the_prefix_of_training(tokenizer, template, turns, images):
    turns = rounds(template, turns)
    encoded = encode(turns, images, tokenizer, template)
    starts = [i for i, label in enumerate(encoded.labels) if label != IGNORED and encoded.labels[i - 1] == IGNORED]
    for asked, start in zip(range(1, len(turns), 2), starts, strict=True):
        prompt = generation_ids(turns[:asked], images, tokenizer, template)
        assert prompt == encoded.input_ids[:start]
        assert prompt[-1] == IMAGE_ID or len(prompt) == 1 or tokenizer.decode(prompt[-1:]).strip()


@pytest.mark.parametrize("answer", ["3", "", "\nred", "é", ".", "  red", "red "])
def test_prompt_is_the_prefix_for_odd_answers(tokenizer, template, answer):
    turns = [IMAGE_TURNS[0], Turn("gpt", answer)]
    encoded = encode(turns, 1, tokenizer, template)
    prompt = generation_ids(turns[:1], 1, tokenizer, template)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.labels == [IGNORED] * len(prompt) + encoded.input_ids[len(prompt) :]


def test_empty_answer_supervises_the_blank_and_eos():
    tokenizer = TOKENIZERS["byte_level"]
    encoded = encode([Turn("human", "q"), Turn("gpt", "")], 0, tokenizer, "pure")
    assert tokenizer.convert_ids_to_tokens(supervised_runs(encoded)[0]) == ["Ġ", "</s>"]


def test_special_tokens_in_data_stay_letters(tokenizer, template):
    text = "tell </s> and <s> from <image>"
    turns = [Turn("human", text), Turn("gpt", text)]
    ids = encode(turns, 0, tokenizer, template).input_ids
    assert ids.count(tokenizer.bos_token_id) == template.forces_bos
    assert ids.count(tokenizer.eos_token_id) == template.closes
    assert tokenizer.convert_tokens_to_ids("<image>") not in ids
    assert IMAGE_ID not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True).count(text) == (2 if template.questions else 1)
    # and the tokenizer still reads them as special for everyone else
    assert tokenizer.encode("</s>", add_special_tokens=False) == [tokenizer.eos_token_id]


def test_tokenizer_that_merges_letters_into_a_special_token_is_refused():
    tokenizer = trained(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    model = json.loads(tokenizer.to_str())
    size = max(model["model"]["vocab"].values())
    model["model"]["vocab"] |= {"</": size + 1, "</s": size + 2}
    model["model"]["merges"] = [["<", "/"], ["</", "s"], ["</s", ">"], *model["model"]["merges"]]
    merging = fast(Tokenizer.from_str(json.dumps(model)))
    with pytest.raises(ValueError, match="reads '</s>' in the text as a special token"):
        encode([Turn("human", "</s>"), Turn("gpt", "a")], 0, merging, "pure")


def test_tokenizer_that_merges_over_the_start_of_an_answer():
    bare = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, ":": 2, " ": 3, "a": 4, ": ": 5, "\n": 6, ".": 7}, [(":", " ")]))
    tokenizer = fast(bare, unk_token=None)
    assert tokenizer.encode(": a", add_special_tokens=False) == [5, 4]
    assert text_ids(tokenizer, " a", after=":") == [3, 4]
    greedy = {":": 0, "\n": 1, ".": 2, " ": 3, "a": 4, ": ": 5, "\n ": 6, ". ": 7, "<s>": 8, "</s>": 9}
    greedy = fast(Tokenizer(models.BPE(greedy, [(":", " "), ("\n", " "), (".", " ")])), unk_token=None)
    with pytest.raises(ValueError, match="merges ' a' with whatever stands before it"):
        text_ids(greedy, " a", after=":")


def test_images_after_bos(tokenizer):
    turns = [Turn("human", "<image> and <image> are what?"), Turn("gpt", "red")]
    encoded = encode(turns, 2, tokenizer, "pure")
    assert encoded.input_ids[:3] == [tokenizer.bos_token_id, IMAGE_ID, IMAGE_ID]
    assert encoded.input_ids.count(IMAGE_ID) == encoded.images == 2
    assert encoded.positions(image_tokens=10) == len(encoded.input_ids) + 18


def test_images_in_the_text(tokenizer):
    turns = [
        Turn("human", "What is it? <image>"),
        Turn("gpt", "red"),
        Turn("human", "And <image><image>?"),
        Turn("gpt", "<image> no"),
    ]
    encoded = encode(turns, 4, tokenizer, "vicuna_v1")
    assert encoded.input_ids.count(IMAGE_ID) == 4
    assert all(label != IMAGE_ID for label in encoded.labels)
    assert encoded.labels[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("images, turns", [(1, TEXT_TURNS[:2]), (2, IMAGE_TURNS[:2])])
def test_markers_must_be_as_many_as_images(template, images, turns):
    for made in (encode, lambda turns, *rest: generation_ids(turns[:1], *rest)):
        with pytest.raises(ValueError, match=f"<image> markers for {images} images"):
            made(turns, images, TOKENIZERS["byte_level"], template)


def test_truncation_counts_every_patch(template):
    tokenizer, turns = TOKENIZERS["byte_level"], rounds(template)
    whole = encode(turns, 1, tokenizer, template)
    length = whole.positions(image_tokens=9)
    assert encode(turns, 1, tokenizer, template, max_length=length, image_tokens=9) == whole
    shorter = encode(turns, 1, tokenizer, template, max_length=length - 1, image_tokens=9)
    assert shorter.input_ids == whole.input_ids[:-1]
    assert shorter.labels == whole.labels[:-1]
    assert shorter.positions(image_tokens=9) == length - 1


def test_truncation_never_leaves_half_an_image_or_nothing_to_learn(template):
    tokenizer, turns = TOKENIZERS["byte_level"], rounds(template)
    at = encode(turns, 1, tokenizer, template).input_ids.index(IMAGE_ID)
    with pytest.raises(ValueError, match=f"image of 9 positions does not fit into {at + 8} positions"):
        encode(turns, 1, tokenizer, template, max_length=at + 8, image_tokens=9)
    with pytest.raises(ValueError, match=f"no supervised token is left within {at + 9} positions"):
        encode(turns, 1, tokenizer, template, max_length=at + 9, image_tokens=9)


def test_unknown_template_and_missing_eos():
    with pytest.raises(ValueError, match="no template is called 'v9'; there are vicuna_v1"):
        encode(TEXT_TURNS, 0, TOKENIZERS["byte_level"], "v9")
    endless = fast(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), eos_token=None)
    with pytest.raises(ValueError, match="no eos_token"):
        encode(TEXT_TURNS, 0, endless, "pure")


def test_tokenizer_without_bos():
    tokenizer = fast(trained(pre_tokenizers.ByteLevel(add_prefix_space=False)), bos_token=None)
    assert encode(IMAGE_TURNS, 1, tokenizer, "pure").input_ids[0] == IMAGE_ID
    ids = encode(TEXT_TURNS, 0, tokenizer, "llava_llama_2").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True).count("[INST]") == 2


def test_reopening_templates_put_bos_before_every_round(tokenizer):
    ids = encode(TEXT_TURNS, 0, tokenizer, "llava_llama_2").input_ids
    starts = [i for i, token in enumerate(ids) if token == tokenizer.bos_token_id]
    assert len(starts) == 2 and starts[0] == 0 and ids[starts[1] - 1] == tokenizer.eos_token_id


def test_long_text_gives_no_warning(caplog):
    tokenizer = byte_level()
    tokenizer.model_max_length = 4
    encode(TEXT_TURNS, 0, tokenizer, "pure")
    assert not caplog.records


@pytest.mark.parametrize("images", [0, 1])
def test_loss_on_all_labels_every_text_token_and_neither_bos_nor_images(tokenizer, template, images):
    turns = [Turn("human", "<image>\nWhat is it?" if images else "What is it?"), Turn("gpt", "Red")]
    answers = encode(turns, images, tokenizer, template)
    whole = encode(turns, images, tokenizer, template, loss_on="all")
    assert whole.input_ids == answers.input_ids
    free = {tokenizer.bos_token_id, IMAGE_ID}
    assert whole.labels == [IGNORED if token in free else token for token in whole.input_ids]
    assert (whole.labels == answers.labels) == (not template.questions)


def test_text_has_bos_where_the_tokenizer_puts_it():
    turns = [Turn("human", "q1"), Turn("gpt", "a1"), Turn("human", "q2"), Turn("gpt", "a2")]
    plain, adding = copy.deepcopy(TOKENIZERS["byte_level"]), copy.deepcopy(TOKENIZERS["byte_level"])
    bos = plain.bos_token_id
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{plain.bos_token} $A", special_tokens=[(plain.bos_token, bos)]
    )
    ids = encode(turns, 0, adding, "text").input_ids
    assert [place for place, token in enumerate(ids) if token == bos] == [0, ids.index(plain.eos_token_id) + 1]
    assert bos not in encode(turns, 0, plain, "text").input_ids


def test_what_does_not_change_is_asked_of_the_tokenizer_once():
    tokenizer, asked = byte_level(), []

    class Counting(type(tokenizer)):
        def __call__(self, text, **settings):
            asked.append(text)
            return super().__call__(text, **settings)

    tokenizer.__class__ = Counting
    encode(IMAGE_TURNS, 1, tokenizer, "vicuna_v1")
    first, asked[:] = list(asked), []
    again = encode(IMAGE_TURNS, 1, tokenizer, "vicuna_v1")
    assert len(asked) < len(first) and "a" not in asked and all(len(text) > 1 for text in asked)
    tokenizer.pad_token = "3"  # it is another one now
    with pytest.raises(ValueError, match="the tokenizer reads '3' in the text as a special token"):
        encode(IMAGE_TURNS, 1, tokenizer, "vicuna_v1")
    assert again.supervised == sum(label != IGNORED for label in again.labels)
