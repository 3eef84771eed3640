"""A study's evaluations become a table, numbers and a picture: cells worked out by hand, gains paired by seed."""

import math

import pytest

from vlmsel import runs
from vlmsel.reporting import figures
from vlmsel.reporting.results import result_rows, show_results
from vlmsel.reporting.tables import as_markdown, as_text
from vlmsel.studies.intervals import interval
from vlmsel.studies.study import MAJORITY, read_evaluations


def write(folder, seed, model, task, value, majority):
    path = folder / f"seed{seed}/evaluate/{model}/{task}/metrics.json"
    runs.write_json(path, {"headline": "accuracy", "metrics": {"accuracy": value}, "majority": {"accuracy": majority}})


def study(folder):
    for seed, (random, mine) in enumerate([(0.5, 0.6), (0.4, 0.7)]):
        for task in ("gqa", "pope"):
            write(folder, seed, "Random", task, random, 0.3)
            write(folder, seed, "Mine", task, mine, 0.3)
    return folder


def test_a_study_is_read_with_the_majority_first(tmp_path):
    values, tasks = read_evaluations(study(tmp_path), ["Random"])
    assert list(values) == [MAJORITY, "Random", "Mine"]
    assert tasks == ["gqa", "pope"]
    assert values["Mine"]["pope"] == pytest.approx([60.0, 70.0])


def test_gains_are_paired_by_seed(tmp_path):
    table = result_rows(*read_evaluations(study(tmp_path), ["Random"]))
    mean, half = interval([10.0, 30.0])
    assert table[0][-1] == "mean - Random"
    assert table[3][-1] == f"+{mean:.1f} ± {half:.1f}"
    assert table[2][-1] == ""


def test_an_unfinished_study_is_refused(tmp_path):
    write(study(tmp_path), 0, "Late", "gqa", 0.1, 0.3)
    with pytest.raises(ValueError, match="Late was not evaluated on seed1/gqa"):
        read_evaluations(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run the study first"):
        read_evaluations(tmp_path)


def test_one_seed_has_no_interval():
    mean, half = interval([3.0])
    assert mean == 3.0 and math.isnan(half)


TABLE = [["model", "gqa", "gain"], ["Random", "45.0 ± 63.5", ""], ["Mine", "65.0", "+20.0"]]


def test_text_and_markdown_hold_the_cells_in_their_places():
    assert as_text(TABLE).splitlines() == [
        "model           gqa   gain",
        "--------------------------",
        "Random  45.0 ± 63.5       ",
        "Mine           65.0  +20.0",
    ]
    assert as_markdown(TABLE) == (
        "| model | gqa | gain |\n|---|---|---|\n| Random | 45.0 ± 63.5 |  |\n| Mine | 65.0 | +20.0 |\n"
    )


def drawn(monkeypatch, folder):
    """Write the results of a study and return the picture's panels."""
    made = []

    class Figure(figures.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(figures, "Figure", Figure)
    show_results(folder, "a study", ["Random"], {"pool": 5})
    (figure,) = made
    return figure.axes


def test_the_picture_has_a_panel_per_task_and_a_dot_per_model_at_its_mean(tmp_path, monkeypatch):
    panels = drawn(monkeypatch, study(tmp_path))
    assert [axis.get_title() for axis in panels] == ["gqa", "pope", "mean"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["Random", "Mine"]
    for axis in panels:
        dots = [tuple(bars.lines[0].get_xydata()[0]) for bars in axis.containers]
        assert dots == [pytest.approx((45, 0)), pytest.approx((65, 1))]
        assert [line.get_xdata()[0] for line in axis.lines if line.get_linestyle() == ":"] == [pytest.approx(45)]


def test_one_task_needs_no_mean(tmp_path, monkeypatch, capsys):
    write(tmp_path, 0, "Random", "gqa", 0.5, 0.3)
    write(tmp_path, 0, "Mine", "gqa", 0.6, 0.3)
    assert [axis.get_title() for axis in drawn(monkeypatch, tmp_path)] == ["gqa"]
    table = result_rows(*read_evaluations(tmp_path, ["Random"]))
    assert table[0] == ["model", "gqa", "gqa - Random"]
    assert table[3] == ["Mine", "60.0", "+10.0"]
    assert (tmp_path / "table.md").read_text() == as_markdown(table) and as_text(table) in capsys.readouterr().out
    found = runs.read_json(tmp_path / "results.json")
    assert (found["pool"], found["seeds"], found["percent"]["Mine"]) == (5, 1, {"gqa": [60.0]})
