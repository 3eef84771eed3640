"""The loop of a study on steps that note what they are asked, and results read from a study's folder."""

import pytest

from vlmsel import runs
from vlmsel.studies.study import MAJORITY, Study, gather, read_evaluations, with_mean


class Noting(Study):
    """Notes its steps; the answer says what it was made of."""

    def __init__(self, kept=()):
        self.steps, self.known = [], dict(kept)

    def prepare(self, seed):
        self.steps.append(("prepare", seed.number))

    def kept(self, seed, arm):
        return self.known.get((seed.number, arm))

    def subset(self, seed, arm):
        self.steps.append(("subset", seed.number, arm))
        return f"{arm}{seed.number}"

    def tune(self, seed, arm, data):
        self.steps.append(("tune", seed.number, arm))
        return f"model of {data}"

    def ask(self, seed, arm, model):
        self.steps.append(("ask", seed.number, arm))
        return {"said": f"{model} in {seed.folder}"}


def test_every_arm_of_every_seed_is_subset_tuned_and_asked(tmp_path):
    study = Noting()
    answers = study.run(tmp_path, range(2), ["A", "B"])
    assert answers == [
        {arm: {"said": f"model of {arm}{k} in {tmp_path}/seed{k}"} for arm in ("A", "B")} for k in (0, 1)
    ]
    arms = [(step, k, arm) for k in (0, 1) for arm in ("A", "B") for step in ("subset", "tune", "ask")]
    assert study.steps == [("prepare", 0), *arms[:6], ("prepare", 1), *arms[6:]]


def test_answers_that_are_kept_need_no_step(tmp_path):
    study = Noting({(0, "B"): {}, (1, "A"): {"said": "before"}})
    answers = study.run(tmp_path, [0, 1], ["A", "B"])
    assert answers[0]["B"] == {} and answers[1]["A"] == {"said": "before"}
    assert [step[1:] for step in study.steps if step[0] == "ask"] == [(0, "A"), (1, "B")]


def test_it_says_how_long_it_goes_on_by_what_it_worked_on_itself(tmp_path, monkeypatch, capsys):
    clock = iter(range(0, 10**6, 90))  # every look at it is a minute and a half later
    monkeypatch.setattr("vlmsel.progress.time.perf_counter", lambda: float(next(clock)))
    Noting({(0, "A"): {}}).run(tmp_path, range(3), ["A", "B"])
    said = [line for line in capsys.readouterr().out.splitlines() if line]
    assert (
        said[0] == "== 2 of 6, 90.0 s each; about 6 min left" and said[-1] == "== 5 of 6, 90.0 s each; about 2 min left"
    )
    assert len(said) == 4  # nothing of what was kept, nor after the last


def test_a_study_that_was_stopped_goes_on_behind_what_is_kept(tmp_path):
    class Stopping(Noting):
        def ask(self, seed, arm, model):
            if (seed.number, arm) == (1, "A"):
                raise KeyboardInterrupt
            self.known[seed.number, arm] = super().ask(seed, arm, model)
            return self.known[seed.number, arm]

    stopped = Stopping()
    with pytest.raises(KeyboardInterrupt):
        stopped.run(tmp_path, range(2), ["A", "B"])
    again = Noting(stopped.known)
    assert again.run(tmp_path, range(2), ["A", "B"]) == Noting().run(tmp_path, range(2), ["A", "B"])
    assert [step for step in again.steps if step[0] == "tune"] == [("tune", 1, "A"), ("tune", 1, "B")]


def test_gathered_values_are_by_row_and_measure_in_the_order_of_the_seeds():
    seeds = [{"A": {"x": 1, "y": 2}, "B": {"x": 3, "y": 4}}, {"B": {"x": 7, "y": 8}, "A": {"x": 5, "y": 6}}]
    assert gather(seeds) == {"A": {"x": [1, 5], "y": [2, 6]}, "B": {"x": [3, 7], "y": [4, 8]}}


def test_the_mean_over_tasks_is_there_where_tasks_are_several():
    values = {"A": {"gqa": [1.0, 2.0], "pope": [3.0, 8.0]}}
    full, measures = with_mean(values, ["gqa", "pope"])
    assert measures == ["gqa", "pope", "mean"] and full["A"]["mean"] == [2.0, 5.0]
    assert with_mean({"A": {"gqa": [1.0]}}, ["gqa"]) == ({"A": {"gqa": [1.0]}}, ["gqa"])


def write(folder, seed, model, task, value, majority):
    path = folder / f"seed{seed}/evaluate/{model}/{task}/metrics.json"
    runs.write_json(path, {"headline": "f1", "metrics": {"f1": value, "n": 0}, "majority": {"f1": majority}})


@pytest.fixture
def folder(tmp_path):
    """A study of two seeds, two models and two tasks."""
    for seed, (random, mine) in enumerate([(0.5, 0.6), (0.4, 0.7)]):
        for task in ("gqa", "pope"):
            write(tmp_path, seed, "Random", task, random, 0.3)
            write(tmp_path, seed, "Mine", task, mine, 0.3)
    return tmp_path


def test_a_study_is_read_with_the_majority_first(folder):
    values, tasks = read_evaluations(folder, ["Random", "not there"])
    assert list(values) == [MAJORITY, "Random", "Mine"] and tasks == ["gqa", "pope"]
    assert values["Mine"]["pope"] == pytest.approx([60.0, 70.0])
    assert values[MAJORITY]["gqa"] == pytest.approx([30.0, 30.0])
    assert list(read_evaluations(folder)[0]) == [MAJORITY, "Mine", "Random"]


def test_an_unfinished_study_is_refused(folder):
    write(folder, 0, "Late", "gqa", 0.1, 0.3)
    with pytest.raises(ValueError, match="Late was not evaluated on seed1/gqa; run the study to its end"):
        read_evaluations(folder)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run the study first"):
        read_evaluations(tmp_path)
