r"""What a language model reads before the choices of a question, as lm-evaluation-harness words it.

A choice is scored as the continuation `" " + choice`. QASC is no task of the harness; it is asked in ARC's words.
GLUE's labels are scored as words, `GLUE_CHOICES[task][label]`.

>>> from types import SimpleNamespace
>>> glue_context("rte", SimpleNamespace(texts=("It rains.", "It is wet.")))
'It rains.\nQuestion: It is wet. True or False?\nAnswer:'
"""

from __future__ import annotations

from string import ascii_uppercase

from vlmsel.data.glue import GlueExample
from vlmsel.data.multiple_choice import ChoiceQuestion

GLUE_PROMPTS = {
    "cola": "{}\nQuestion: Does this sentence make sense?\nAnswer:",
    "sst2": "{}\nQuestion: Is this sentence positive or negative?\nAnswer:",
    "mrpc": "Sentence 1: {}\nSentence 2: {}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
    "qqp": "Question 1: {}\nQuestion 2: {}\nQuestion: Do both questions ask the same thing?\nAnswer:",
    "qnli": "{}\n{}\nQuestion: Does this response answer the question?\nAnswer:",
    "rte": "{}\nQuestion: {} True or False?\nAnswer:",
}
# By label: 0 of qnli and rte is entailment.
GLUE_CHOICES: dict[str, tuple[str, str]] = {
    "cola": ("no", "yes"),
    "sst2": ("negative", "positive"),
    "mrpc": ("no", "yes"),
    "qqp": ("no", "yes"),
    "qnli": ("yes", "no"),
    "rte": ("True", "False"),
}
_ASKED = "Question: {question}\nAnswer:"
CHOICE_PROMPTS = {
    "qasc": _ASKED,
    "hellaswag": "{question}",
    "piqa": _ASKED,
    "logiqa": "Passage: {passage}\nQuestion: {question}\nChoices:\n{options}Answer:",
}


def choice_context(task: str, question: ChoiceQuestion) -> str:
    """Return what the choices of a multiple-choice question go on from."""
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(ascii_uppercase, question.choices, strict=False))
    return CHOICE_PROMPTS[task].format(question=question.question, passage=question.passage, options=options)


def glue_context(task: str, example: GlueExample) -> str:
    """Return what the label's word of a GLUE example goes on from."""
    return GLUE_PROMPTS[task].format(*example.texts)
