"""Score tables on single test samples, made here, through the identification table."""

import json
import math

import pytest

from tools import identification_table
from vlmsel.scoring.table import write_table

KINDS = ["a", "a", "b", "b"]
GOOD = {0: [-2.0, -1.0, 0.0, 1.0], 2: [5.0, 7.0, -1.0, 6.0]}  # on a test sample of a and one of b


def write(folder, columns, kinds=KINDS):
    fixed = {"uid": range(len(kinds)), "source": kinds, "tokens": [3] * len(kinds), "loss": [0.5] * len(kinds)}
    write_table(folder / "scores.parquet", {**fixed, **columns}, {"pool": "p"})
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
    records = [{"source": kind, "conversations": turns} for kind in ("a", "a", "b")]
    (folder / "test.json").write_text(json.dumps(records))
    return folder / "scores.parquet"


def scores(name="TracIn", values=GOOD):
    return {f"{name}/test:{uid}": column for uid, column in values.items()}


def run(monkeypatch, scores, *more):
    test = scores.parent / "test.json"
    monkeypatch.setattr("sys.argv", ["identification_table.py", str(scores), "--test", str(test), *more])
    identification_table.main()


def test_table_and_numbers_by_hand(tmp_path, monkeypatch, capsys):
    flat = {uid: [0.0] * 4 for uid in GOOD}
    run(monkeypatch, write(tmp_path, scores() | scores("Flat", flat) | {"TracIn/mean": [0.0] * 4}))
    table = capsys.readouterr().out
    # a: perfect; b: 2 of 4 pairs and one of the two lowest is right -> -1 is below both, 6 is between 5 and 7: 3 of 4
    assert "| TracIn | 0.875 ± 0.177 | 0.125 | 0.750 ± 0.354 | 0.250 |" in table
    assert "| Flat | 0.500 ± 0.000 | 0.000 | 0.500 ± 0.000 | 0.000 |" in table
    assert (tmp_path / "identification.md").read_text() == table
    found = json.loads((tmp_path / "identification.json").read_text())["TracIn"]
    assert found["by_class"]["b"]["auc"]["mean"] == 0.75
    assert found["test_samples"][0] == {"kind": "a", "auc": 1.0, "recall": 1.0}


def test_training_samples_without_scores_are_left_out_and_counted(tmp_path, monkeypatch, capsys):
    more = {uid: [*column, math.nan] for uid, column in GOOD.items()}
    run(monkeypatch, write(tmp_path, scores(values=more), [*KINDS, "a"]))
    said = capsys.readouterr().out
    assert "1 training samples without scores are left out" in said and "| TracIn | 0.875 ± 0.177" in said


def test_what_does_not_belong_together_is_refused(tmp_path, monkeypatch, capsys):
    for columns, more, said in (
        ({"TracIn/test": [0.0] * 4}, (), "no scores of single samples of a target 'test'"),
        (scores(), ("--target", "other"), "no scores of single samples of a target 'other'"),
        (scores(values={7: [0.0] * 4}), (), "has no usable sample 7"),
        (scores() | scores("X", {0: [0.0] * 4}), (), "different samples of 'test'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, write(tmp_path, columns), *more)
        assert stopped.value.code == 2 and said in capsys.readouterr().err
