"""The table model x task and its picture, from values made here."""

import math

import pytest
from matplotlib.figure import Figure
from pictures import has, pixels

from vlmsel import runs
from vlmsel.reporting.figures import draw_results
from vlmsel.reporting.results import result_rows, show_results
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.studies.study import MAJORITY

VALUES = {
    MAJORITY: {"gqa": [30.0, 30.0], "pope": [30.0, 30.0]},
    "Random": {"gqa": [50.0, 40.0], "pope": [50.0, 40.0]},
    "Mine": {"gqa": [60.0, 70.0], "pope": [60.0, 70.0]},
}


def test_gains_are_paired_by_seed():
    table = result_rows(VALUES, ["gqa", "pope"])
    assert table[0] == ["model", "gqa", "pope", "mean", "mean - Random"]
    assert table[3] == ["Mine", *3 * [shown([60.0, 70.0])], shown([10.0, 30.0], "+.1f")]
    assert table[3][-1].startswith("+20.0 ± ") and table[2][-1] == ""


def test_one_task_needs_no_mean_and_one_seed_has_no_interval():
    table = result_rows({name: {"gqa": row["gqa"][:1]} for name, row in VALUES.items()}, ["gqa"])
    assert table[0] == ["model", "gqa", "gqa - Random"]
    assert table[3] == ["Mine", "60.0", "+10.0"]


def test_without_the_base_there_are_no_gains():
    assert [row[-1] for row in result_rows({"Mine": VALUES["Mine"]}, ["gqa"])] == ["gqa - Random", ""]


def test_a_choice_s_own_mixture_is_a_second_control():
    table = result_rows({**VALUES, "same mixture": {"gqa": [55.0, 60.0], "pope": [55.0, 60.0]}}, ["gqa", "pope"])
    assert table[0][-2:] == ["mean - Random", "mean - same mixture"]
    assert table[3][-2:] == [shown([10.0, 30.0], "+.1f"), shown([5.0, 10.0], "+.1f")]
    assert table[4][-2:] == [shown([5.0, 20.0], "+.1f"), ""]  # the control itself


def test_text_is_in_columns_and_markdown_in_cells():
    table = [["model", "gqa"], ["a", "1.0"], ["longest", "10.0"]]
    assert as_text(table) == "model     gqa\n-------------\na         1.0\nlongest  10.0"
    assert as_markdown(table) == "| model | gqa |\n|---|---|\n| a | 1.0 |\n| longest | 10.0 |\n"


@pytest.mark.parametrize(("tasks", "panels"), [(["gqa"], 1), (["gqa", "pope"], 3)], ids=["one", "two and their mean"])
def test_the_picture_has_a_panel_per_task_and_a_dot_per_model(tasks, panels, tmp_path):
    draw_results(VALUES, tasks, tmp_path / "table.png", "two models")
    picture = pixels(tmp_path / "table.png")
    assert picture.shape == (int(120 * (0.42 * 2 + 1.3)), int(120 * max(5, 2.5 * panels)), 3)
    assert has(picture, "tab:blue") and has(picture, "0.35")
    draw_results({name: VALUES[name] for name in (MAJORITY, "Random")}, tasks, tmp_path / "random.png", "one")
    assert not has(pixels(tmp_path / "random.png"), "tab:blue")


def test_one_seed_shows_the_standard_errors_of_its_cells_on_one_scale(tmp_path, monkeypatch):
    errors = {"Random 1": (0.03, 0.04), "Random 2": (0.01, 0.02), "Mine": (0.02, None)}
    for model, own in errors.items():
        for task, error in zip(("gqa", "pope"), own, strict=True):
            found = {"metrics": {"a": 0.5}, "majority": {"a": 0.3}, "standard_errors": {"a": error}}
            runs.write_json(tmp_path / f"seed0/evaluate/{model}/{task}/metrics.json", {"headline": "a", **found})
    drawn, limits = [], set()

    class Watched(Figure):
        def savefig(self, *args, **kwargs):
            for axis in self.axes:
                limits.add(axis.get_xlim())
                lines = [bars for container in axis.containers for bars in container.lines[2]]
                drawn.append([segment[1, 0] - segment[0, 0] for bars in lines for segment in bars.get_segments()])
            super().savefig(*args, **kwargs)

    monkeypatch.setattr("vlmsel.reporting.figures.Figure", Watched)
    show_results(tmp_path, "a study", ["Random"], {})
    gqa, pope = math.hypot(3, 1) / 2, math.hypot(4, 2) / 2
    assert drawn[0] == pytest.approx([2 * gqa, 2 * 2]) and drawn[1] == pytest.approx([2 * pope])
    assert drawn[2] == pytest.approx([2 * math.hypot(gqa, pope) / 2]) and len(limits) == 1


def test_a_study_s_folder_gets_numbers_table_and_picture(tmp_path, capsys):
    for seed in (0, 1):
        for model in ("Mine", "Random"):
            path = tmp_path / f"seed{seed}/evaluate/{model}/gqa/metrics.json"
            found = {"metrics": {"a": VALUES[model]["gqa"][seed] / 100}, "majority": {"a": 0.3}}
            runs.write_json(path, {"headline": "a", **found})
    show_results(tmp_path, "a study", ["Random"], {"settings": {"size": 3}})
    results = runs.read_json(tmp_path / "results.json")
    assert results["settings"] == {"size": 3} and results["seeds"] == 2
    assert results["percent"]["Mine"]["gqa"] == pytest.approx([60.0, 70.0])
    table = (tmp_path / "table.md").read_text()
    assert "| Mine | 65.0 ± 63.5 | +20.0 ± 127.1 |" in table
    assert "a study, 2 seeds; accuracy in %" in capsys.readouterr().out
    assert has(pixels(tmp_path / "table.png"), "tab:blue")
