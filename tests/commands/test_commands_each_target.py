"""score --each_target: every sample of the target files is a target, and what their mean must be."""

import json
import math

import pytest
from score_words import score_words, table

from vlmsel import cli, runs
from vlmsel.scoring.table import FIXED

LINEAR = ["HyperINF", "DataInf", "LiSSA", "TracIn", "Exact"]  # in the target
CLOSE = {"HyperINF": 1e-3, "Exact": 1e-3}  # inverses multiply the rounding of float32


def words(world, aligned, out, **more):
    return score_words(world, aligned, out, [*LINEAR, "Random"], **more)


@pytest.fixture(scope="module")
def scored(world, aligned, tmp_path_factory):
    """Columns of a run per target set, and of one per sample of them."""
    out = tmp_path_factory.mktemp("each")
    for name, each in (("sets", "false"), ("each", "true")):
        assert cli.main(words(world, aligned, out / name, each_target=each)) == 0
    return [table(out / name) for name in ("sets", "each")]


def test_every_target_sample_has_a_column_per_scorer(world, scored):
    sizes = {task: len(runs.read_json(world / f"targets/{task}.json")) for task in ("gqa", "pope")}
    expected = [f"{s}/{task}:{uid}" for s in [*LINEAR, "Random"] for task, n in sizes.items() for uid in range(n)]
    assert set(scored[1]) == {*FIXED, *expected} and len(expected) > 12


@pytest.mark.parametrize("scorer", LINEAR)
def test_the_mean_over_samples_is_the_score_of_the_set(scored, scorer):
    sets, each = scored
    for task in ("gqa", "pope"):
        columns = [column for name, column in each.items() if name.startswith(f"{scorer}/{task}:")]
        mean = [sum(values) / len(columns) for values in zip(*columns, strict=True)]
        near = CLOSE.get(scorer, 1e-5) * max(max(map(abs, column)) for column in columns)
        assert mean == pytest.approx(sets[f"{scorer}/{task}"], abs=near)
        assert columns[0] != pytest.approx(columns[1], rel=1e-3)


def test_target_samples_that_cannot_be_used_have_no_column(world, aligned, tmp_path):
    records = runs.read_json(world / "targets/gqa.json")
    (tmp_path / "gqa.json").write_text(json.dumps([{"id": 0}, records[0], {**records[1], "image": "none.png"}]))
    more = {"targets.gqa": tmp_path / "gqa.json", "each_target": "true", "scorers": "[TracIn]"}
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 0
    found = table(tmp_path / "run")
    assert [name for name in found if "gqa" in name] == ["TracIn/gqa:1"]
    assert all(math.isfinite(value) for value in found["TracIn/gqa:1"])
    assert [entry["uid"] for entry in runs.read_json(tmp_path / "run/skipped_gqa.json")] == [0, 2]


def test_a_target_file_without_usable_samples_is_refused(world, aligned, tmp_path, capsys):
    (tmp_path / "gqa.json").write_text(json.dumps([{"id": 0}]))
    more = {"targets.gqa": tmp_path / "gqa.json", "each_target": "true"}
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 2
    assert f"target gqa: {tmp_path}/gqa.json: no usable sample" in capsys.readouterr().err


def test_single_targets_are_stored_and_scored_from_the_store(world, aligned, scored, tmp_path):
    more = {"each_target": "true", "scorers": "[TracIn]", "store": tmp_path / "store"}
    assert cli.main(words(world, aligned, tmp_path / "run", **more)) == 0
    again = ["--store", f"{tmp_path}/store", "--targets", "[gqa:1]", "--out", f"{tmp_path}/again"]
    assert cli.main(["rescore", *again, "--scorers", "[TracIn]", "--device", "cpu"]) == 0
    found = table(tmp_path / "again")
    assert set(found) == {*FIXED, "TracIn/gqa:1"}
    assert found["TracIn/gqa:1"] == pytest.approx(scored[1]["TracIn/gqa:1"], rel=1e-4, abs=1e-6)
