"""The file of answers: what is asked, what is gone on from, and what is refused; several processes."""

import json
import subprocess
import sys
import textwrap
import threading

import pytest

from vlmsel.evaluation.harness import Responder, answer_all, read_lines

ASKED = {str(i): {"prompt": "what" + "?" * (i % 3)} for i in range(7)}


class Model:
    """Answers a question with its id and remembers the batches."""

    def __init__(self, stop_after=None):
        self.batches, self.prepared, self.stop_after = [], [], stop_after

    def prepare(self, ids):
        self.prepared += ids
        return list(ids)

    def respond(self, ids):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        self.batches.append(ids)
        return [f"answer {identity} é\n" for identity in ids]

    @property
    def asked(self):
        return sorted(identity for batch in self.batches for identity in batch)


def answer(model, path, asked=ASKED, **settings):
    return answer_all(asked, Responder(model.prepare, model.respond), path, **settings)


RIGHT = {identity: f"answer {identity} é\n" for identity in ASKED}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def line(identity, text="yes", asked="what"):
    return json.dumps({"question_id": identity, "prompt": asked, "text": text}) + "\n"


def test_every_question_is_asked_once_and_written_down(tmp_path):
    model, path = Model(), tmp_path / "run/predictions.jsonl"
    assert answer(model, path, batch_size=3) == RIGHT
    assert model.asked == sorted(model.prepared) == list(ASKED) and [len(b) for b in model.batches] == [3, 3, 1]
    assert {one["question_id"]: one["text"] for one in lines(path)} == RIGHT
    assert {one["question_id"]: {"prompt": one["prompt"]} for one in lines(path)} == ASKED


def test_questions_of_like_length_share_a_batch(tmp_path):
    model = Model()
    answer(model, tmp_path / "predictions.jsonl", batch_size=3)
    lengths = [len(ASKED[identity]["prompt"]) for batch in model.batches for identity in batch]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_stopped_run_goes_on(tmp_path, stop):
    path, first, second = tmp_path / "predictions.jsonl", Model(stop_after=stop), Model()
    with pytest.raises(KeyboardInterrupt):
        answer(first, path, batch_size=3)
    assert path.is_file() == (stop > 0)  # nothing to go on from, no file
    answers = answer(second, path, batch_size=2)
    assert sorted(first.asked + second.asked) == list(ASKED)
    assert answers == answer(Model(stop_after=0), path) == RIGHT
    assert len(lines(path)) == len(ASKED)


def test_a_full_disk_is_named_and_what_was_answered_stays(tmp_path, small_disk):
    class Talkative(Model):
        def respond(self, ids):
            return [1500 * "é" + one for one in super().respond(ids)]

    path, model = tmp_path / "predictions.jsonl", Talkative()
    with small_disk(8192), pytest.raises(OSError, match=r"predictions.jsonl: cannot be written \(.* GB free"):
        answer(Talkative(), path, batch_size=1)
    answer(model, path, batch_size=1)
    assert 0 < len(model.asked) < len(ASKED) and len(lines(path)) == len(ASKED)


def test_the_next_batch_is_prepared_while_one_is_answered(tmp_path):
    model, seen = Model(), []

    def respond(ids):
        seen.append((len(model.batches), len(model.prepared)))
        return model.respond(ids)

    answer_all(ASKED, Responder(model.prepare, respond, ahead=True), tmp_path / "predictions.jsonl", batch_size=2)
    assert [batches for batches, _ in seen] == [0, 1, 2, 3]
    assert model.asked == list(ASKED)
    prepared = threading.Event()

    def second(ids):
        prepared.set() if "3" in ids or "6" in ids else None
        return ids

    def wait(ids):
        assert prepared.wait(10), "the second batch is not prepared while the first is answered"
        return ids

    answer_all(ASKED, Responder(second, wait, ahead=True), tmp_path / "again.jsonl", batch_size=4)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_fault_while_preparing_is_raised_after_the_batches_before_it(tmp_path, ahead):
    model, path = Model(), tmp_path / "predictions.jsonl"

    def prepare(ids):
        if "5" in ids:
            raise ValueError("question 5: no picture")
        return model.prepare(ids)

    with pytest.raises(ValueError, match="question 5: no picture"):
        answer_all(ASKED, Responder(prepare, model.respond, ahead), path, batch_size=1)
    assert set(read_lines(path)) == {i for i in ASKED if len(ASKED[i]["prompt"]) < len(ASKED["5"]["prompt"])} | {"2"}


@pytest.mark.parametrize("kept", [1, 20, 40, -1, -2, -4])
def test_a_half_written_line_is_dropped_and_asked_again(tmp_path, kept):
    path = tmp_path / "predictions.jsonl"
    answer(Model(), path)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[:last] + whole[last:][:kept])
    model = Model()
    assert answer(model, path) == RIGHT
    assert len(model.asked) == 1
    assert path.read_bytes() == whole


def test_a_line_that_ends_within_a_letter_is_dropped(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(line("1").encode() + "é".encode()[:1])
    assert answer(Model(), path, {"1": {"prompt": "what"}}) == {"1": "yes"}
    assert path.read_bytes() == line("1").encode()


@pytest.mark.parametrize(
    "bad", ["{", "[]", "1", '{"question_id": "1"}', '{"question_id": 1, "prompt": "", "text": ""}',
            '{"question_id": "1", "prompt": "", "text": null}'],
)  # fmt: skip
def test_a_broken_line_before_the_end_is_refused(tmp_path, bad):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("0") + bad + "\n" + line("2"))
    with pytest.raises(ValueError, match=r"predictions.jsonl: line 2 is no prediction; delete the file"):
        read_lines(path)


def test_numbers_are_answers_where_they_are_asked_for(tmp_path):
    path = tmp_path / "predictions.jsonl"
    responder = Responder(list, lambda ids: [[-1.5, -float(identity)] for identity in ids])
    found = answer_all(ASKED, responder, path, "loglikelihoods")
    assert found["3"] == [-1.5, -3.0]
    assert answer_all(ASKED, Responder(list, None), path, "loglikelihoods") == found
    with pytest.raises(ValueError, match="line 1 is no prediction"):
        answer(Model(), path)


def test_the_same_answer_twice_is_harmless_and_two_answers_are_not(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("1") + line("1"))
    assert list(read_lines(path)) == ["1"]
    path.write_text(line("1") + line("1", "no"))
    with pytest.raises(ValueError, match="line 2 gives question 1 another answer"):
        read_lines(path)


def test_answers_to_other_questions_are_left_out(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("elsewhere"))
    assert answer(Model(), path) == RIGHT


def test_answers_to_another_prompt_are_not_used(tmp_path):
    path = tmp_path / "predictions.jsonl"
    answer(Model(), path)
    changed = {identity: {"prompt": "why"} for identity in ASKED}
    with pytest.raises(ValueError, match=r"question 0 was asked as 'what', now it would be 'why'; choose another"):
        answer(Model(), path, changed)
    more = {identity: {**one, "choices": ["a"]} for identity, one in ASKED.items()}
    with pytest.raises(ValueError, match=r"question 0 was asked as None, now it would be \['a'\]"):
        answer(Model(), path, more)


def test_wrong_use_is_refused(tmp_path):
    path = tmp_path / "predictions.jsonl"
    with pytest.raises(ValueError, match="zip"):
        answer_all(ASKED, Responder(list, lambda ids: ["one answer"]), path)
    assert not path.exists()


# Several processes


def test_files_that_other_processes_left_are_gone_on_from_and_merged(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("0"))
    (tmp_path / "predictions.1.jsonl").write_text(line("1", asked="what?") + line("4", asked="what?")[:9])
    model = Model()
    answers = answer(model, path)
    assert model.asked == ["2", "3", "4", "5", "6"]
    assert answers == RIGHT | {"0": "yes", "1": "yes"}
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert len(lines(path)) == len(ASKED)


def test_two_processes_that_gave_two_answers(tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(line("0"))
    (tmp_path / "predictions.1.jsonl").write_text(line("0", "no"))
    with pytest.raises(ValueError, match=r"predictions.1.jsonl: line 1 gives question 0 another answer than .*delete"):
        answer(Model(), path)


@pytest.mark.slow
def test_two_real_processes_deal_the_batches(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            f"""
            from pathlib import Path
            from vlmsel import processes
            from vlmsel.evaluation.harness import Responder, answer_all

            folder = Path({str(tmp_path)!r})
            asked = {{str(i): {{"prompt": "what"}} for i in range(10)}}
            done = []
            respond = lambda ids: done.extend(ids) or [f"by {{processes.rank()}}" for _ in ids]
            found = answer_all(asked, Responder(list, respond), folder / "predictions.jsonl", batch_size=2)
            assert set(found) == set(asked) and set(found.values()) == {{"by 0", "by 1"}}
            (folder / f"done{{processes.rank()}}").write_text(" ".join(done))
            """
        )
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(program)]
    ended = subprocess.run(launch, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 0, ended.stderr
    first, second = ((tmp_path / f"done{rank}").read_text().split() for rank in (0, 1))
    assert (len(first), len(second)) == (6, 4) and sorted(first + second) == [str(i) for i in range(10)]
    assert len(lines(tmp_path / "predictions.jsonl")) == 10
    assert not (tmp_path / "predictions.1.jsonl").exists()
