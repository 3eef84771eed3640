"""The whole chain on a world of a few samples: what it leaves behind, and that a second call finds everything done."""

import json
import re
from collections import Counter

import pytest
import yaml
from pictures import has, pixels

from vlmsel import cli
from vlmsel.data.world.files import TASKS
from vlmsel.models.open import open_subject
from vlmsel.studies.demo import BEFORE, CHOSEN, MIXTURE, PRESETS, RANDOM, ROWS, SCORERS, TOP, Demo
from vlmsel.studies.demo import FULL as FULL_POOL
from vlmsel.studies.demo_rules import WAYS
from vlmsel.studies.study import MAJORITY, Seed

SIZES = {"pool": 20, "target": 2, "questions": 3, "fit_samples": 8, "align_epochs": 1, "tune_epochs": 1}
FULL = {"captions": 4, "mixture": "true", "draws": 2}


def demo(out, *more, **sizes):
    settings = [word for name, value in {**SIZES, **sizes}.items() for word in (f"--settings.{name}", str(value))]
    return cli.main(["demo", "--out", str(out), *settings, *more])


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "demo"
    assert demo(out, **FULL) == 0
    return out


def metrics(done, arm, task):
    found = json.loads((done / "seed0/evaluate" / arm / task / "metrics.json").read_text())
    return 100 * found["metrics"][found["headline"]]


def test_table_has_every_kind_of_model_and_task(done):
    results = json.loads((done / "results.json").read_text())
    rows = [name for name in ROWS if name not in (*SCORERS, *WAYS)]
    assert list(results["percent"]) == [MAJORITY, *rows]
    assert all(set(row) == set(TASKS) for row in results["percent"].values())
    for name in rows:
        arms = [f"{name} 1", f"{name} 2"] if name in (RANDOM, MIXTURE) else [name]
        for task in TASKS:
            values = [metrics(done, arm, task) for arm in arms]
            assert results["percent"][name][task] == [pytest.approx(sum(values) / len(values))], (name, task)
    table = (done / "table.md").read_text().splitlines()
    assert [re.split(r" *\| *", line)[1] for line in table[2:]] == [MAJORITY, *rows]
    picture = pixels(done / "table.png")
    assert picture.shape == (int(120 * (0.42 * len(rows) + 1.3)), 120 * 5 * 5 // 2, 3)
    assert has(picture, "tab:blue") and has(picture, "0.35") and has(picture, "0.6")


def test_every_step_is_an_ordinary_run_folder(done):
    seed = done / "seed0"
    steps = ["choose/warmup", "choose/score", "tune/top", "tune/choose", "evaluate"]
    assert all((folder / "config.yaml").is_file() for folder in [done / "align", *(seed / step for step in steps)])
    config = yaml.safe_load((seed / "choose/config.yaml").read_text())  # whole, as the command line leaves it
    assert config["scorer"].startswith("HyperINF(") and config["seed"] == 0 and config["lora"] is None
    chosen = json.loads((seed / "selected/top.json").read_text())
    assert len(chosen) == round(0.2 * SIZES["pool"])
    manifest = json.loads((seed / "selected/top.json.manifest.json").read_text())
    assert manifest["columns"] == [f"HyperINF/{task}" for task in TASKS]


def test_the_mixture_is_that_of_the_choice(done):
    seed = done / "seed0"
    drawn, chosen = (
        Counter(json.loads((seed / f"{name}.json.manifest.json").read_text())["sources"])
        for name in ("selected/same mixture 1", "choose/chosen")
    )
    assert drawn == chosen


def test_the_quick_demo_takes_the_aligned_model_of_the_package(tmp_path):
    quick = Demo(tmp_path, PRESETS["quick"], lambda *given, **options: pytest.fail("aligned anew"))
    quick.align()
    subject = open_subject(quick.aligned)
    subject.require_ready()
    assert quick.settings.arms == [BEFORE, f"{RANDOM} 1", TOP, CHOSEN, FULL_POOL]


def test_rules_are_chosen_by_scores_at_both_models(tmp_path):
    study, called = Demo(tmp_path, PRESETS["rules"], lambda *given, **options: called.append((given, options))), []
    arms = [arm for arm in study.settings.arms if arm in WAYS]
    assert arms == list(WAYS) and len(arms) == 17
    study.subset(Seed(7, tmp_path), "round_robin TracIn, warmed up")
    (name, out), options = called.pop()
    assert name == "select" and out.name == "round_robin TracIn, warmed up.json"
    scored = str(tmp_path / "rules" / "warmed up")
    assert {"scores": scored, "scorer": "TracIn", "rule": "round_robin"}.items() <= options.items()
    study.subset(Seed(7, tmp_path), "Loss, aligned")
    assert "rule" not in called.pop()[1]  # Loss draws: select takes no rule for it


@pytest.mark.slow  # twenty small models
def test_every_rule_and_scorer_is_tuned_and_evaluated(tmp_path):
    sizes = {"draws": 1, "mixture": "true", "rules": "true", "scorers": "true", "pool": 40}
    assert demo(tmp_path / "demo", "--first_seed", "3", **sizes) == 0
    results = json.loads((tmp_path / "demo/results.json").read_text())
    assert {*WAYS, *SCORERS} < set(results["percent"])
    manifest = json.loads((tmp_path / "demo/seed3/selected/HyperINF.json.manifest.json").read_text())
    assert manifest["columns"] == ["HyperINF/vqav2", "HyperINF/gqa", "HyperINF/textvqa"]
    assert (tmp_path / "demo/seed3/tune/Loss, aligned").is_dir()
    heads = (tmp_path / "demo/table.md").read_text().splitlines()[0]
    assert heads.endswith("| mean - Random | mean - same mixture |")


@pytest.mark.slow  # every step of it has its own test of this
def test_second_call_finds_everything_done_and_prints_the_same_table(done, capsys):
    made = [path for path in done.rglob("*.safetensors") if path.name != "affinity.safetensors"]  # as the score table
    before = {p: p.stat().st_mtime_ns for p in made}
    table = (done / "table.md").read_text()
    capsys.readouterr()
    assert demo(done, **FULL) == 0
    assert {p: p.stat().st_mtime_ns for p in made} == before
    assert (done / "table.md").read_text() == table
    assert str(done / "table.png") in capsys.readouterr().out


def test_other_sizes_need_another_folder(done, capsys):
    assert demo(done, **{**FULL, "pool": 30}) == 2
    problem = capsys.readouterr().err.strip()
    assert problem.startswith("error: ") and "another configuration" in problem and "\n" not in problem


def test_a_demo_without_seeds_is_refused(tmp_path, capsys):
    assert demo(tmp_path / "demo", "--seeds", "0") == 2
    assert "seeds must be at least 1, got 0" in capsys.readouterr().err


def test_a_target_that_is_no_task_is_refused_before_anything_runs(tmp_path, capsys):
    assert demo(tmp_path / "demo", "--settings.targets", "[gqa,vizwiz]") == 2
    assert "targets must be some of vqav2, gqa, pope, textvqa, got ['gqa', 'vizwiz']" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()
