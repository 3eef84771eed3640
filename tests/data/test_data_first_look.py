"""What is told of a pool and its targets as they are read, against loops over the samples."""

import json
import random

import pytest

from vlmsel.data.first_look import first_look
from vlmsel.data.formats import read_samples


def record(question, answer, image=None):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns} | ({"image": image} if image else {})


def read(path, records):
    path.write_text(json.dumps(records))
    return read_samples(path).samples


def told(tmp_path, pool, targets=None, against=()):
    goals = {name: read(tmp_path / f"{name}.json", records) for name, records in (targets or {}).items()}
    return list(first_look("pool.json", read(tmp_path / "pool.json", pool), goals, against))


def shown(sample):
    return sample.images, tuple(turn.text.replace("<image>", "").strip() for turn in sample.turns)


def test_repeated_samples_and_targets_in_the_pool_are_those_that_a_loop_finds(tmp_path):
    rng = random.Random(0)

    def draw():
        image = rng.choice([None, "a.png", "b/a.png"])
        mark = rng.choice(["", "<image>\n"]) if image else ""
        return record(mark + rng.choice(["What?", "Who?", "Where?"]), rng.choice(["red", "blue", "one"]), image)

    pool, target = [draw() for _ in range(20)], [draw() for _ in range(8)]
    pool.insert(3, {"conversations": []})  # which no sample comes of, so that uids and places differ
    lines = told(tmp_path, pool, {"mine": target})
    samples, goals = read_samples(tmp_path / "pool.json").samples, read_samples(tmp_path / "mine.json").samples
    seen, twice = set(), []
    for sample in samples:
        twice += [sample.uid] if shown(sample) in seen else []
        seen.add(shown(sample))
    both = [goal.uid for goal in goals if shown(goal) in seen]
    place = next(sample.uid for sample in samples if shown(sample) == shown(goals[both[0]]))
    assert 0 < len(twice) < 20 and 0 < len(both) < 8
    assert lines == [
        f"pool.json: {len(twice)} of 20 samples repeat earlier ones (the first: {twice[0]}); `vlmsel inspect pool.json "
        "--write_clean FILE` leaves them out",
        f"target mine: {len(both)} of 8 samples are in the pool (the first: {both[0]}, the pool's {place}) and speak "
        "for themselves",
    ]


def test_nothing_is_told_of_a_pool_without_faults(tmp_path):
    pool = [record(f"What {i}?", "red", "a.png") for i in range(9)]
    assert told(tmp_path, pool, {"mine": [record("What 1?", "red", "b.png")]}) == []


def test_target_samples_that_an_evaluation_asks(tmp_path):
    questions = [{"question_id": i, "image": f"{i:012d}.jpg", "text": "Is there a dog?"} for i in range(3)]
    (tmp_path / "test.json").write_text(json.dumps(questions))
    target = [record("<image>\nIs there a dog?", "yes", f"coco/{i:012d}.jpg") for i in (7, 2, 1)]
    lines = told(tmp_path, [record("a", "b")], {"mine": target}, [str(tmp_path / "test.json")])
    assert lines == [
        f"target mine: 2 of 3 samples ask what {tmp_path}/test.json asks (the first: 1), which judges them no more"
    ]


@pytest.mark.parametrize(
    ("name", "answers", "message"),
    [
        ("pope", ["a dog"] * 9, "9 of 9 answers are neither yes nor no (the first: sample 0, 'a dog')"),
        ("pope", ["Yes.", "no", "noisy"], "1 of 3 answers are neither yes nor no (the first: sample 2, 'noisy')"),
        ("mine", ["yes"] * 19 + ["red"], "1 of 20 answers are neither yes nor no (the first: sample 19, 'red')"),
        ("mine", ["A", "B."] * 10 + ["(C)", "no idea"], "1 of 22 answers are no letter of an option (the first"),
        ("mine", ["yes", "red"] * 9, None),
        ("mine", ["yes", "No, it is not."] * 9, None), ("mine", ["A dog."] * 30, None),
        ("gqa", ["red"] * 9, None),
    ],
)  # fmt: skip
def test_answers_that_fit_no_label(tmp_path, name, answers, message):
    lines = told(tmp_path, [record("a", "b")], {name: [record("Is it?", answer) for answer in answers]})
    assert lines == [] if message is None else lines[0].startswith(f"target {name}: {message}") and len(lines) == 1
