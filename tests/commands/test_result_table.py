import math

import pytest

from vlmsel import runs
from vlmsel.reporting import tables as result_table


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
    values, tasks = result_table.collect(study(tmp_path), ["Random"])
    assert list(values) == ["majority answer", "Random", "Mine"]
    assert tasks == ["gqa", "pope"]
    assert values["Mine"]["pope"] == pytest.approx([60.0, 70.0])


def test_gains_are_paired_by_seed(tmp_path):
    values, tasks = result_table.collect(study(tmp_path), ["Random"])
    table = result_table.rows(values, tasks)
    mean, half = result_table.interval([10.0, 30.0])
    assert table[0][-1] == "mean - Random"
    assert table[3][-1] == f"+{mean:.1f} ± {half:.1f}"
    assert table[2][-1] == ""


def test_an_unfinished_study_is_refused(tmp_path):
    write(study(tmp_path), 0, "Late", "gqa", 0.1, 0.3)
    with pytest.raises(ValueError, match="Late was not evaluated on seed1/gqa"):
        result_table.collect(tmp_path)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="run the study first"):
        result_table.collect(tmp_path)


def test_one_seed_has_no_interval():
    mean, half = result_table.interval([3.0])
    assert mean == 3.0 and math.isnan(half)


def test_text_and_markdown_hold_every_cell(tmp_path):
    table = result_table.rows(*result_table.collect(study(tmp_path)))
    for text in (result_table.as_text(table), result_table.as_markdown(table)):
        assert all(cell in text for row in table for cell in row)


def test_the_picture_is_drawn(tmp_path):
    values, tasks = result_table.collect(study(tmp_path), ["Random"])
    result_table.draw(values, tasks, tmp_path / "table.png", "two models")
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"


def test_one_task_needs_no_mean(tmp_path):
    write(tmp_path, 0, "Random", "gqa", 0.5, 0.3)
    write(tmp_path, 0, "Mine", "gqa", 0.6, 0.3)
    values, tasks = result_table.collect(tmp_path, ["Random"])
    table = result_table.rows(values, tasks)
    assert table[0] == ["model", "gqa", "gqa - Random"]
    assert table[3] == ["Mine", "60.0", "+10.0"]
    result_table.draw(values, tasks, tmp_path / "table.png", "one task")
    assert (tmp_path / "table.png").stat().st_size > 1000
