"""The file of answers: what is asked, what is gone on from, and what is refused."""

import json

import pytest

from vlmsel.evaluation.harness import answer_all, prompt, read_answers
from vlmsel.evaluation.questions import Question

QUESTIONS = [Question(str(i), f"{i}.png", "what" + "?" * (i % 3), ("yes",), "all") for i in range(7)]


class Model:
    """Answers a question with its id and remembers the batches."""

    def __init__(self, stop_after=None):
        self.batches, self.stop_after = [], stop_after

    def __call__(self, batch):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append([question.id for question, _ in batch])
        return [f"answer {question.id} é\n" for question, _ in batch]

    @property
    def asked(self):
        return sorted(identity for batch in self.batches for identity in batch)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def line(identity, text="yes", asked="what"):
    return json.dumps({"question_id": identity, "prompt": asked, "text": text}) + "\n"


def test_every_question_is_asked_once_and_written_down(tmp_path):
    model, path = Model(), tmp_path / "run/predictions.jsonl"
    answers = answer_all(QUESTIONS, model, path, batch_size=3)
    assert answers == {q.id: f"answer {q.id} é\n" for q in QUESTIONS}
    assert model.asked == [q.id for q in QUESTIONS] and [len(batch) for batch in model.batches] == [3, 3, 1]
    assert {one["question_id"]: one["text"] for one in lines(path)} == answers
    assert {one["question_id"]: one["prompt"] for one in lines(path)} == {q.id: prompt(q, "short") for q in QUESTIONS}


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_stopped_run_goes_on(tmp_path, stop):
    path, first, second = tmp_path / "predictions.jsonl", Model(stop_after=stop), Model()
    with pytest.raises(KeyboardInterrupt):
        answer_all(QUESTIONS, first, path, batch_size=3)
    assert path.is_file() == (stop > 0)  # nothing to go on from, no file
    answers = answer_all(QUESTIONS, second, path, batch_size=2)
    assert sorted(first.asked + second.asked) == [q.id for q in QUESTIONS]
    assert (
        answers == answer_all(QUESTIONS, Model(stop_after=0), path) == {q.id: f"answer {q.id} é\n" for q in QUESTIONS}
    )
    assert len(lines(path)) == len(QUESTIONS)


@pytest.mark.parametrize("kept", [1, 20, 40, -1, -2, -4])
def test_a_half_written_line_is_dropped_and_asked_again(tmp_path, kept):
    path = tmp_path / "predictions.jsonl"
    expected = answer_all(QUESTIONS, Model(), path)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[:last] + whole[last:][:kept])
    model = Model()
    assert answer_all(QUESTIONS, model, path) == expected
    assert len(model.asked) == 1
    assert path.read_bytes() == whole


def test_a_line_that_ends_within_a_letter_is_dropped(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(line("1").encode() + "é".encode()[:1])
    assert read_answers(path) == {"1": ("what", "yes")}
    assert path.read_bytes() == line("1").encode()


def test_no_file_no_answers(tmp_path):
    assert read_answers(tmp_path / "predictions.jsonl") == {}


@pytest.mark.parametrize(
    "bad", ["", "{", "[]", "1", '{"question_id": "1"}', '{"question_id": 1, "prompt": "", "text": ""}',
            '{"question_id": "1", "prompt": "", "text": null}', b"\xff"],
)  # fmt: skip
def test_a_broken_line_before_the_end_is_refused(tmp_path, bad):
    path = tmp_path / "predictions.jsonl"
    bad = bad if isinstance(bad, bytes) else bad.encode()
    path.write_bytes(line("0").encode() + bad + b"\n" + line("2").encode())
    with pytest.raises(ValueError, match=r"predictions.jsonl: line 2 is no prediction; delete the file"):
        read_answers(path)


def test_the_same_answer_twice_is_harmless_and_two_answers_are_not(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("1") + line("1"))
    assert read_answers(path) == {"1": ("what", "yes")}
    path.write_text(line("1") + line("1", "no"))
    with pytest.raises(ValueError, match="line 2 gives question 1 another answer"):
        read_answers(path)


def test_answers_to_other_questions_are_left_out(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("elsewhere"))
    assert set(answer_all(QUESTIONS, Model(), path)) == {q.id for q in QUESTIONS}


def test_answers_to_another_prompt_are_not_used(tmp_path):
    path = tmp_path / "predictions.jsonl"
    answer_all(QUESTIONS, Model(), path, "short")
    with pytest.raises(ValueError, match=r"question 0 was asked as .*single word.*, now it would be 'what'; choose"):
        answer_all(QUESTIONS, Model(), path, "bare")
    changed = [Question(q.id, q.image, "why", q.references, q.group) for q in QUESTIONS]
    with pytest.raises(ValueError, match="question 0 was asked as"):
        answer_all(changed, Model(), path, "short")


def test_the_suffix_stands_on_a_line_of_its_own():
    assert prompt(QUESTIONS[0], "short") == "what\nAnswer the question using a single word or phrase."
    assert prompt(QUESTIONS[0], "bare") == "what"
    with pytest.raises(ValueError, match="protocol must be one of short, bare; got 'long'"):
        prompt(QUESTIONS[0], "long")


def test_wrong_use_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(ValueError, match="batch_size must be at least 1, got -1"):
        answer_all(QUESTIONS, Model(), path, batch_size=-1)
    with pytest.raises(ValueError, match="8 questions have only 7 different ids"):
        answer_all([*QUESTIONS, QUESTIONS[0]], Model(), path)
    with pytest.raises(ValueError, match="zip"):
        answer_all(QUESTIONS, lambda batch: ["one answer"], path)
    assert not path.exists()
