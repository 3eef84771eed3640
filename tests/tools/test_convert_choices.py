"""Multiple-choice files in their official forms, dealt out to pool, target and test."""

import json

import pytest

from tools.convert_choices import INSTRUCTIONS, convert
from vlmsel.data.formats import read_samples
from vlmsel.data.multiple_choice import read_choices
from vlmsel.evaluation.text.prompts import choice_context

COUNT, TARGET, TEST = 20, 3, 5


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def hellaswag(n):
    record = {"ind": n, "activity_label": f"Task {n}", "ctx": f"Who [x] does {n}? "}
    return {**record, "endings": [f"{n}{c}" for c in "abcd"], "label": n % 4}


def qasc(n):
    options = [{"text": f"{n}{letter}", "label": letter} for letter in "ABCDEFGH"]
    return {"id": f"q{n}", "question": {"stem": f"What is {n}?", "choices": options}, "answerKey": "ABCDEFGH"[n % 8]}


def piqa(n):
    return {"goal": f"Do {n}", "sol1": f"this {n}", "sol2": f"that {n}"}


def logiqa(n):
    return "\n".join(["", "abcd"[n % 4], f"Some context {n}.", "Which?", *(f"{c}.option {n}{c}" for c in "ABCD")])


def instruction(n):
    text = (
        f"Choose: What is {n}?\n\nAnswer1: {n}a Answer2: {n}b Answer3: {n}c\n\nAnswer format: answer1/answer2/answer3"
    )
    return {"instruction": text, "input": "", "output": "the correct answer is", "answer": f"answer{n % 3 + 1}"}


FILES = {
    "hellaswag": lines(map(hellaswag, range(COUNT))),
    "qasc": json.dumps([qasc(n) for n in range(COUNT)]),
    "piqa": lines(map(piqa, range(COUNT))),
    "logiqa": "\n".join(map(logiqa, range(COUNT))) + "\n",
    INSTRUCTIONS: json.dumps([instruction(n) for n in range(COUNT)]),
}


@pytest.fixture(params=FILES)
def task(request):
    return request.param


def converted(task, folder, content=None, **more):
    """Write a file of questions and convert it; return the file, the labels and the folder."""
    (folder / task).mkdir(exist_ok=True)
    source, labels = folder / task / "questions", None
    source.write_text(FILES[task] if content is None else content)
    if task == "piqa":
        labels = folder / "labels.lst"
        labels.write_text("".join(f"{n % 2}\n" for n in range(COUNT)))
    sizes = {"target": TARGET, "test": TEST, **more}
    return source, labels, convert(task, source, folder / "out", labels, **sizes)


def test_questions(task, folder):
    labels = folder / "test-labels.lst"
    (file,) = (path for path in folder.glob("test.*"))
    name = "qasc" if task == INSTRUCTIONS else task
    return name, read_choices(name, file, labels if labels.exists() else None)


test_questions.__test__ = False


def test_no_question_is_in_two_parts_and_none_is_lost(task, tmp_path):
    source, labels, counts = converted(task, tmp_path)
    assert counts == {"target": TARGET, "test": TEST, "pool": COUNT - TARGET - TEST, "repeated": 0, "too_long": 0}
    name, held = test_questions(task, tmp_path / "out")
    read = {part: read_samples(tmp_path / f"out/{part}.json").samples for part in ("pool", "target")}
    asked = {part: {sample.turns[0].text for sample in samples} for part, samples in read.items()}
    asked["test"] = {choice_context(name, one) for one in held}
    assert [len(asked[part]) for part in ("pool", "target", "test")] == [COUNT - TARGET - TEST, TARGET, TEST]
    assert len(set.union(*asked.values())) == COUNT


def test_samples_are_contexts_and_right_choices_and_test_questions_are_as_they_were(task, tmp_path):
    source, labels, _ = converted(task, tmp_path)
    name, held = test_questions(task, tmp_path / "out")
    if task != INSTRUCTIONS:
        known = {choice_context(task, one): one.choices[one.answer] for one in read_choices(task, source, labels)}
    else:
        known = {f"Question: What is {n}?\nAnswer:": f"{n}{'abc'[n % 3]}" for n in range(COUNT)}
    for part in ("pool", "target"):
        pool = read_samples(tmp_path / f"out/{part}.json")
        assert pool.problems == [] and {sample.source for sample in pool.samples} == {task}
        assert all(known[s.turns[0].text] == s.turns[1].text for s in pool.samples)
    assert all(known[choice_context(name, one)] == one.choices[one.answer] for one in held)


def test_the_seed_decides_alone(tmp_path):
    parts = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        converted("hellaswag", tmp_path / name, seed=seed)
        parts.append((tmp_path / name / "out/pool.json").read_text())
    assert parts[0] == parts[1] != parts[2]


def test_a_question_that_comes_again_is_left_out(tmp_path):
    records = [qasc(n) for n in range(COUNT)] + [{**qasc(3), "id": "again"}]
    _, _, counts = converted("qasc", tmp_path, json.dumps(records))
    assert counts["repeated"] == 1 and counts["pool"] == COUNT - TARGET - TEST


def test_long_questions_are_left_out(tmp_path):
    assert len(choice_context("qasc", read_choices("qasc", converted("qasc", tmp_path)[0])[9])) == 28
    _, _, counts = converted("qasc", tmp_path, longest=30)  # 10 to 19 have a figure more in question and choice
    assert counts["too_long"] == 10 and counts["pool"] == COUNT - TARGET - TEST - 10


def test_right_options_that_are_there_twice_are_told_and_left_out(tmp_path, capsys):
    twin = {"instruction": "Choose: Why?\n\nAnswer1: so Answer2: so\n\nAnswer format: a", "answer": "answer1"}
    _, _, counts = converted(INSTRUCTIONS, tmp_path, json.dumps([*map(instruction, range(COUNT)), twin]))
    assert counts["pool"] == COUNT - TARGET - TEST
    assert "1 of 21 questions left out: their right option is there twice" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "content", "more", "line"),
    [
        ("hellaswag", None, {"pool": 13}, "20 different questions cannot give 3 for the target, 5 for the test and 13"),
        ("hellaswag", None, {"target": 15}, "and any for the pool; ask for fewer"),
        ("qasc", json.dumps([{**qasc(0), "answerKey": ""}]), {}, "its answers are not public"),
        (INSTRUCTIONS, "{\n}", {}, "expected a list of records, got an object"),
        (INSTRUCTIONS, "[]", {}, "no question in it; take LLM-Adapters' file"),
        (INSTRUCTIONS, "[1, 2]", {}, "record 1 of 2: no 'instruction' with"),
        (INSTRUCTIONS, json.dumps([{**instruction(0), "answer": "answer9"}]), {}, "none of the 3 options"),
    ],
)
def test_what_cannot_be_converted_is_named(task, content, more, line, tmp_path):
    with pytest.raises(ValueError) as problem:
        converted(task, tmp_path, content, **more)
    assert line in str(problem.value)
