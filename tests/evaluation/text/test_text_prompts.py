"""The exact words before the choices."""

from types import SimpleNamespace

import pytest

from vlmsel.evaluation.text.prompts import GLUE_CHOICES, choice_context, glue_context

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
