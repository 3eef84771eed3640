"""Score tables on single test samples, made here, through the identification table."""

import json

import numpy as np
import pytest

from tools import identification_table
from vlmsel.scoring.affinity import Columns, write_affinities
from vlmsel.scoring.table import write_table

KINDS = ["a", "a", "b", "b"]
GOOD = {0: [-2.0, -1.0, 0.0, 1.0], 2: [5.0, 7.0, -1.0, 6.0]}  # on a test sample of a and one of b


def write(folder, scorers, kinds=KINDS, rows=(0, 1, 2, 3), name="test"):
    """A table, the affinities of these rows by scorer and test sample's uid, and the test file."""
    fixed = {"uid": range(len(kinds)), "source": kinds, "tokens": [3] * len(kinds), "loss": [0.5] * len(kinds)}
    write_table(folder / "scores.parquet", fixed, {"pool": "p"})
    uids = list(next(iter(scorers.values())))
    ones = {"norms": np.ones(len(rows)), "target_norms": np.ones(len(uids))}
    columns = {
        scorer: Columns(-np.array([own[uid] for uid in uids]).T, np.eye(len(uids)), **ones)
        for scorer, own in scorers.items()
    }
    targets = [{"file": name, "uid": uid, "weight": None, "loss": 1.0} for uid in uids]
    about = {"pool": "p", "pool_sha256": "", "config": ""}
    write_affinities(folder / "affinity.safetensors", np.array(rows), targets, columns, about)
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
    records = [{"source": kind, "conversations": turns} for kind in ("a", "a", "b")]
    (folder / "test.json").write_text(json.dumps(records))
    return folder / "scores.parquet"


def run(monkeypatch, scores, *more):
    test = scores.parent / "test.json"
    monkeypatch.setattr("sys.argv", ["identification_table.py", str(scores), "--test", str(test), *more])
    identification_table.main()


def test_table_and_numbers_by_hand(tmp_path, monkeypatch, capsys):
    run(monkeypatch, write(tmp_path, {"TracIn": GOOD, "Flat": {uid: [0.0] * 4 for uid in GOOD}}))
    table = capsys.readouterr().out
    # a: perfect; b: 2 of 4 pairs and one of the two lowest is right -> -1 is below both, 6 is between 5 and 7: 3 of 4
    assert "| TracIn | 0.875 ± 0.177 | 0.125 | 0.750 ± 0.354 | 0.250 |" in table
    assert "| Flat | 0.500 ± 0.000 | 0.000 | 0.500 ± 0.000 | 0.000 |" in table
    assert (tmp_path / "identification.md").read_text() == table
    found = json.loads((tmp_path / "identification.json").read_text())["TracIn"]
    assert found["by_class"]["b"]["auc"]["mean"] == 0.75
    assert found["test_samples"][0] == {"kind": "a", "auc": 1.0, "recall": 1.0}


def test_training_samples_without_scores_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    run(monkeypatch, write(tmp_path, {"TracIn": GOOD}, ["a", *KINDS], rows=(1, 2, 3, 4)))
    said = capsys.readouterr().out
    assert "1 training samples without scores are left out" in said and "| TracIn | 0.875 ± 0.177" in said


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch, capsys):
    for scorers, more, said in (
        ({"TracIn": GOOD}, ("--target", "other"), "no samples of a target 'other'; it has test"),
        ({"TracIn": {7: [0.0] * 4}}, (), "has no usable sample 7"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, write(tmp_path, scorers), *more)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
