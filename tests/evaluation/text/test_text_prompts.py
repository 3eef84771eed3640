"""The exact words before the choices."""

from types import SimpleNamespace

import pytest

from vlmsel.evaluation.text.prompts import GLUE_CHOICES, choice_context, continuation, glue_context

QUESTION = SimpleNamespace(
    id="7", question="What falls?", choices=("rain {}", "sky", "fog", "sun"), answer=0, passage="Water falls."
)


def example(*texts):
    return SimpleNamespace(id="7", texts=texts, label=1)


@pytest.mark.parametrize(
    "task, expected",
    [
        ("hellaswag", "What falls?"),
        ("piqa", "Question: What falls?\nAnswer:"),
        ("qasc", "Question: What falls?\nAnswer:"),
        (
            "logiqa",
            "Passage: Water falls.\nQuestion: What falls?\nChoices:\nA. rain {}\nB. sky\nC. fog\nD. sun\nAnswer:",
        ),
    ],
)
def test_multiple_choice(task, expected):
    assert choice_context(task, QUESTION) == expected


@pytest.mark.parametrize(
    "task, texts, expected, choices",
    [
        ("cola", ["It {rains}."], "It {rains}.\nQuestion: Does this sentence make sense?\nAnswer:", ("no", "yes")),
        (
            "sst2",
            ["a fine film "],
            "a fine film \nQuestion: Is this sentence positive or negative?\nAnswer:",
            ("negative", "positive"),
        ),
        (
            "mrpc",
            ["One.", "Two."],
            "Sentence 1: One.\nSentence 2: Two.\nQuestion: Do both sentences mean the same thing?\nAnswer:",
            ("no", "yes"),
        ),
        (
            "qqp",
            ["One?", "Two?"],
            "Question 1: One?\nQuestion 2: Two?\nQuestion: Do both questions ask the same thing?\nAnswer:",
            ("no", "yes"),
        ),
        (
            "qnli",
            ["One?", "Two."],
            "One?\nTwo.\nQuestion: Does this response answer the question?\nAnswer:",
            ("yes", "no"),
        ),
        ("rte", ["One.", "Two."], "One.\nQuestion: Two. True or False?\nAnswer:", ("True", "False")),
    ],
)
def test_glue(task, texts, expected, choices):
    assert glue_context(task, example(*texts)) == expected
    assert GLUE_CHOICES[task] == choices


def test_a_choice_goes_on_behind_one_blank():
    assert continuation("yes") == " yes"


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="must be one of qasc, hellaswag, piqa, logiqa; got 'arc'"):
        choice_context("arc", QUESTION)
    with pytest.raises(ValueError, match="must be one of cola, sst2, mrpc, qqp, qnli, rte; got 'wnli'"):
        glue_context("wnli", example("One."))
    with pytest.raises(ValueError, match="mrpc example 7 has 1 texts, and the task has 2"):
        glue_context("mrpc", example("One."))
    with pytest.raises(ValueError, match="cola example 7 has 2 texts, and the task has 1"):
        glue_context("cola", example("One.", "Two."))
