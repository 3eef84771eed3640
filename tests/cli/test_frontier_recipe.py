"""The frontier: its ways are options of `vlmsel score`, its fidelity is that of known scores, and it runs, small."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from vlmsel import cli, runs

SCRIPT = Path(__file__).parents[2] / "recipes/frontier/frontier.py"


@pytest.fixture
def frontier(monkeypatch):
    spec = importlib.util.spec_from_file_location("frontier", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "frontier", module)  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


def test_every_way_is_options_of_score(frontier):
    known = set(
        cli.parse("score", ["--model", "m", "--pool", "p", "--out", "o"])[1]["config"].replace(":", " ").split()
    )
    tried = frontier.ways(400)
    assert all(set(options) <= known for options in tried.values())
    assert [tried[f"fit {part} %"]["fit_samples"] for part in (10, 5, 1)] == [40, 20, 4]
    assert tried["last 2 layers"]["blocks"] == r"layers\.(3|2)\..*lora"


def test_a_score_turned_round_is_the_opposite_of_the_full_one(frontier, tmp_path, monkeypatch):
    whole = np.random.default_rng(0).normal(size=20)
    tables = {
        "full": {f"HyperINF/{task}": whole for task in frontier.TASKS} | {"loss": -whole},
        "back": {f"TracIn/{task}": -whole for task in frontier.TASKS},
    }
    monkeypatch.setattr(frontier, "read_table", lambda path: (tables[path.parent.name], {}))
    chosen = {"full": {1, 2, 3, 4}, "back": {4, 5, 6, 7}}
    monkeypatch.setattr(frontier.Frontier, "chosen", lambda self, scored, *how: chosen[scored.name])
    world = frontier.Frontier(tmp_path, 0, 20, 2, 0.2, "wall", ())
    found = world.fidelity(tmp_path / "back", "TracIn", tmp_path / "full")
    assert found["rho"] == found["gqa"] == pytest.approx(-1) and found["top"] == 0.25
    assert "choice" not in found  # no affinities
    assert world.fidelity(tmp_path / "full", frontier.LOSS, tmp_path / "full")["rho"] == pytest.approx(1)


def test_a_score_that_was_stopped_is_timed_from_its_beginning(frontier, tmp_path, monkeypatch):
    out, called = tmp_path / "full", []
    out.mkdir()
    (out / "half.bin").write_text("left by a run that was stopped")
    monkeypatch.setattr(frontier, "call", lambda *words, **how: called.append(out.exists()) or out.mkdir())
    world = frontier.Frontier(tmp_path, 0, 20, 2, 0.2, "wall", ())
    assert world.score("full", {}, out) == world.score("full", {}, out) and called == [False]


@pytest.mark.slow
def test_it_runs_small(frontier, tmp_path, monkeypatch):
    ways = ["fit 10 %", "last layer", frontier.KEPT, frontier.STORED, frontier.PROXY, "BM25"]
    words = ["--out", tmp_path, "--seeds", 5, "--rounds", 2, "--pool", 30, "--target", 2, "--questions", 3]
    words += ["--ways", *ways]
    monkeypatch.setattr(sys, "argv", ["frontier.py", *map(str, words)])
    frontier.main()
    found = runs.read_json(tmp_path / "frontier.json")["ways"]
    assert list(found) == [frontier.FULL, *ways, frontier.LOSS] and (tmp_path / "frontier.png").stat().st_size
    assert found[frontier.FULL]["rho"] == [pytest.approx(1)] and found[frontier.FULL]["choice"] == [1]
    assert found[frontier.FULL]["time"] == [1, 1] and len(found["BM25"]["seconds"]) == 2
    assert "choice" not in found[frontier.STORED] and "top" in found[frontier.STORED]
    worth = {row: own[frontier.WORTH] for row, own in found.items() if frontier.WORTH in own}
    assert list(worth) == [row for row in found if "choice" in found[row]] and frontier.LOSS in worth
    folder = tmp_path / "seed5/evaluate"
    asked = {
        one: [runs.read_json(path) for path in (folder / one).glob("*/metrics.json")]
        for one in [*worth, "Random 1", "Random 2"]
    }
    assert all(len(own) == 4 for own in asked.values())
    reached = {one: np.mean([found["metrics"][found["headline"]] for found in own]) for one, own in asked.items()}
    chance = (reached["Random 1"] + reached["Random 2"]) / 2
    assert worth["full"] == [pytest.approx(100 * (reached["full"] - chance))]
    layers = runs.read_json(tmp_path / "seed5/proxy/llama/config.json")["num_hidden_layers"]
    assert layers == 2 and (tmp_path / "seed5/round0" / frontier.PROXY / "scores.parquet").is_file()
