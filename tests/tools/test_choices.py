"""Two seeds' choices, made here, through the table of what choices look like."""

import numpy as np
import pytest

from tools import choices
from vlmsel import runs
from vlmsel.scoring.affinity import Columns, write_affinities
from vlmsel.scoring.table import write_table

ABOUT = {"pool": "p", "pool_sha256": "", "config": ""}


def seed(folder, sources, tokens, answers, flaws, chosen, truth=True):
    """A seed's pool, score run and choices {name: uids}."""
    n = len(sources)
    records = [{"conversations": [{"value": "?"}, {"value": answer}]} for answer in answers]
    runs.write_json(folder / "world/pool.json", records)
    if truth:
        runs.write_json(folder / "world/pool_truth.json", [{"flaw": flaw} for flaw in flaws])
    table = {
        "uid": range(n),
        "source": sources,
        "tokens": [9] * n,
        "supervised": tokens,
        "loss": [1.0, 2.0, 3.0, np.nan],
    }
    (folder / "score").mkdir()
    write_table(folder / "score/scores.parquet", table, ABOUT)
    rows = np.array([0, 1, 2])  # the last was not scored
    columns = Columns(np.ones((3, 1)), np.ones((1, 1)), np.array([2.0, 4.0, 6.0]), np.ones(1))
    target = {"file": "t", "uid": 0, "weight": None, "loss": 1.0}
    write_affinities(folder / "score/affinity.safetensors", rows, [target], {"HyperINF": columns}, ABOUT)
    for name, uids in chosen.items():
        path = folder / f"selected/{name}.json.manifest.json"
        runs.write_json(path, {"uids": uids, "pool": str(folder / "world/pool.json")})


@pytest.fixture
def study(tmp_path):
    flaws, answers = ["none", "wrong", "none", "wrong"], ["yes", "no", "a", "b"]
    seed(
        tmp_path / "seed1",
        ["q", "q", "c", "c"],
        [1, 2, 3, 4],
        answers,
        flaws,
        {"Random 1": [0, 1], "Random 2": [2, 2], "top": [2]},
    )
    seed(
        tmp_path / "seed2",
        ["c", "c", "c", "q"],
        [5, 5, 5, 9],
        answers,
        flaws,
        {"Random 1": [0], "Random 2": [0], "top": [3]},
    )
    return tmp_path


def table(folder, *more):
    head, *lines = choices.rows(folder, folder, "score", "HyperINF", *more or [None])
    return {line[0]: dict(zip(head[1:], line[1:], strict=True)) for line in lines}


def test_means_are_over_samples_then_draws_then_seeds(study):
    found = table(study)
    assert list(found) == ["whole pool", "Random", "top"]
    assert found["Random"]["tokens"] == "3.62"  # ((1.5 + 3) / 2 + 5) / 2
    assert found["Random"]["flawed"] == "12.5"  # ((50 + 0) / 2 + 0) / 2
    assert found["top"] | {"c": "50", "q": "50"} == found["top"]
    assert (found["top"]["loss"], found["top"]["norm"]) == ("3", "6")  # seed 2's only one was not scored
    assert found["whole pool"]["c"] == "62.5"


def test_a_source_is_looked_into(study):
    found = table(study, "q")
    assert (found["Random"]["yes q"], found["Random"]["flawed q"]) == ("50", "50")  # seed 1's first draw alone has it
    assert found["top"]["flawed q"] == "100" and found["whole pool"]["yes q"] == "25"


def test_pools_without_truth_have_no_flaws_and_an_empty_measure_no_number(tmp_path):
    seed(tmp_path / "seed1", ["q", "c", "c", "c"], [1, 2, 3, 4], ["no"] * 4, [], {"top": [1]}, truth=False)
    found = table(tmp_path, "q")
    assert "flawed" not in found["top"] and found["top"]["yes q"] == "" and found["whole pool"]["yes q"] == "0"


def test_a_folder_of_no_study_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="no seed"):
        table(tmp_path)
    (tmp_path / "seed1/selected").mkdir(parents=True)
    with pytest.raises(SystemExit, match="seed1: nothing was chosen there"):
        table(tmp_path)
