"""A run that its disk has no room for is refused before the first pass."""

from collections import namedtuple

import pytest
from safetensors.torch import load_file
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, stopping, tiny_items

from vlmsel import runs
from vlmsel.scorers import HyperINF, TracIn
from vlmsel.scoring.room import written

SCORERS = [TracIn(), HyperINF(damping=10.0)]


@pytest.mark.parametrize("columns", [None, 2, 128])
def test_what_is_written_is_known_before(tmp_path, monkeypatch, columns):
    model = tiny_vlm()
    wake_lora(model)
    losses, calls = stopping(999)
    targets = {"a": tiny_items([1, 0], seed=1), "b": tiny_items([2], seed=2)}
    run = Run(model, tiny_items(), targets, losses=losses, columns=columns)
    needs = written(run.pool, run.fit, run.targets, SCORERS)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda folder: usage(needs - 1))
    with pytest.raises(ValueError) as fault:
        run.score(SCORERS, tmp_path / "run")
    assert calls == [] and not (tmp_path / "run").exists()
    assert str(fault.value).startswith(f"{tmp_path}/run: what score writes takes ") and "\n" not in str(fault.value)
    monkeypatch.setattr(runs.shutil, "disk_usage", lambda folder: usage(needs))
    scored = run.score(SCORERS, tmp_path / "run")
    files = [load_file(path) for path in (tmp_path / "run").rglob("*.safetensors")]
    size = sum(one.element_size() * one.numel() for file in files for one in file.values())
    table = 4 * scored.scores.numel()
    if scored.affinities is not None:
        table += sum(4 * own.columns.numel() for own in scored.affinities.of.values())
    # what stands beside the scores, or the greater states of the curvature pass
    gathered = sum(4 * sum(own) ** 2 for own in run.pool.shapes().values())
    assert 0.9 * (size + table) < needs < max(1.5 * (size + table), 2 * gathered)
    monkeypatch.setattr(
        runs.shutil, "disk_usage", lambda folder: usage(max(0, needs - runs.bytes_in(tmp_path / "run")))
    )
    run.score(SCORERS, tmp_path / "run")  # what is there needs no more room
