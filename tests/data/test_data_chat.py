"""Chat templates: which tokens are the assistant's, with marks and without, and templates that cannot be used."""

import pytest
from tiny_huggingface import byte_tokenizer, save_language

from vlmsel.data.chat import CHAT, ChatEncoder
from vlmsel.data.dataset import Reading
from vlmsel.data.sample import Sample, Turn
from vlmsel.models.open import open_subject

TURNS = (Turn("human", "What?"), Turn("gpt", "Red."), Turn("human", "And?"), Turn("gpt", "Blue."))
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{{ eos_token if m['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'assistant: ' }}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{{ eos_token }}{% else %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
)
FORGETFUL = (
    "{% for m in messages %}{{ '' if m['role'] == 'assistant' and not loop.last else m['content'] }}|{% endfor %}"
)


def said(template, turns=TURNS, **settings):
    tokenizer = byte_tokenizer()
    found = ChatEncoder(tokenizer, template).encode(turns, **settings)
    return tokenizer.decode([label for label in found.labels if label >= 0]), tokenizer.decode(found.input_ids)


def test_answers_and_the_token_that_ends_each_are_supervised():
    text = "<s>user: What?\nassistant: Red.</s>user: And?\nassistant: Blue.</s>"
    assert said(PLAIN) == (" Red.</s> Blue.</s>", text)
    assert said(MARKED) == ("Red.</s>Blue.</s>", text)


def test_everything_but_bos_can_be_supervised():
    labels, text = said(PLAIN, loss_on="all")
    assert "<s>" + labels == text


def test_system_turns_come_first():
    turns = (Turn("system", "Be brief."), *TURNS)
    labels, text = said(PLAIN, turns)
    assert labels == " Red.</s> Blue.</s>" and text.startswith("<s>system: Be brief.\n")


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (
            FORGETFUL,
            TURNS,
            "does not write turn 2 behind the prompt for it, or writes it otherwise where others follow",
        ),
        (PLAIN.replace("'assistant:'", "'robot:'"), TURNS, "does not write turn 2 behind the prompt"),
        ("{{ raise_exception('no') }}", TURNS, "the chat template cannot be used"),
        (PLAIN, TURNS[:1], "turns must alternate human, gpt"),
        (
            PLAIN,
            (Turn("human", "</s>"), TURNS[1]),
            "turn 1 spells '</s>', which the tokenizer reads as a special token",
        ),
    ],
)
def test_what_cannot_be_used_says_why(template, turns, reason):
    with pytest.raises(ValueError, match=reason):
        said(template, turns)


def test_an_answer_that_merges_with_its_prompt_is_refused():
    tokenizer = byte_tokenizer(("Ġyes",))
    template = PLAIN.replace("'assistant:'", "'assistant: '")
    with pytest.raises(ValueError, match="merges the beginning of turn 2 with the prompt before it"):
        ChatEncoder(tokenizer, template).encode((TURNS[0], Turn("gpt", "yes")))


def test_what_is_cut_loses_its_labels():
    tokenizer = byte_tokenizer()
    whole = ChatEncoder(tokenizer, PLAIN).encode(TURNS)
    cut = ChatEncoder(tokenizer, PLAIN).encode(TURNS, 40)
    assert (cut.input_ids, cut.labels) == (whole.input_ids[:40], whole.labels[:40])
    with pytest.raises(ValueError, match="no supervised token is left within 10 positions"):
        ChatEncoder(tokenizer, PLAIN).encode(TURNS, 10)


def test_a_text_model_is_read_in_its_own_template_unless_another_is_named(tmp_path):
    sample = Sample(0, "a", (), TURNS)
    folder = save_language(tmp_path / "llama", chat_template=PLAIN)
    own = open_subject(str(folder), "cpu")
    assert own.vlm_config.template == CHAT and own.reads_with == "the model's own chat template"
    expected = ChatEncoder(own.tokenizer, PLAIN).encode(TURNS)
    assert own.encode(sample, Reading()).input_ids == expected.input_ids
    assert own.size(sample, Reading()) == (len(expected.input_ids), expected.supervised)
    named = open_subject(str(folder), "cpu", template="text")
    assert "user:" not in named.tokenizer.decode(named.encode(sample, Reading()).input_ids)
    assert own.digest() != named.digest()
    own.save(tmp_path / "saved")
    again = open_subject(str(tmp_path / "saved"), "cpu")
    assert again.encode(sample, Reading()).labels == expected.labels
