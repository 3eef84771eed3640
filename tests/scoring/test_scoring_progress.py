"""A curvature pass that is killed anywhere goes on with the same bits."""

import json

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, Stopped, stopping, tiny_items

from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import progress

SCORERS = [
    TracIn(block_scale=True),
    DataInf(),
    HyperINF(damping=10.0),
    HyperINF(dtype="float64", name="wide"),
    LiSSA(),
    LiSSA(batch="stream", depth=6, name="stream"),
    Exact(),
]
BEFORE = 2 + 8  # batches of the target, and of the pass that measures damping


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """Of a run that was not stopped."""
    return score(model, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def always(monkeypatch):
    """Write the file after every batch."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SHARE", 0)


def score(model, out, losses=None, batch_size=1):
    run = Run(model, tiny_items(), {"a": tiny_items([1, 0], seed=1)}, batch_size=batch_size, losses=losses)
    return run.score(SCORERS, out)


@pytest.mark.parametrize("seen", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(7, marks=pytest.mark.slow)])
def test_a_pass_goes_on_behind_the_last_file(model, whole, always, seen, tmp_path):
    losses, _ = stopping(BEFORE + seen)
    with pytest.raises(Stopped):
        score(model, tmp_path / "stopped", losses)
    assert json.loads((tmp_path / "stopped/curvature.0of1/state.json").read_text())["batches"] == seen
    losses, calls = stopping(99)
    found = score(model, tmp_path / "stopped", losses)
    assert len(calls) == BEFORE + (8 - seen) + 8
    expected = whole
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.losses, expected.losses)
    assert found.details == expected.details
    assert not list((tmp_path / "stopped").glob("curvature*"))


def test_files_are_not_written_all_the_time(model, whole, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(progress.Progress, "save", lambda self, batches, *rest: saved.append(batches))
    score(model, tmp_path)
    assert not saved


@pytest.mark.slow
def test_a_file_of_another_plan_is_no_help(model, always, tmp_path):
    losses, _ = stopping(BEFORE + 4)
    with pytest.raises(Stopped):
        score(model, tmp_path / "a", losses)
    found, expected = score(model, tmp_path / "a", batch_size=2), score(model, tmp_path / "b", batch_size=2)
    assert torch.equal(found.scores, expected.scores)


def test_a_damaged_file_is_named(model, always, tmp_path):
    losses, _ = stopping(BEFORE + 4)
    with pytest.raises(Stopped):
        score(model, tmp_path, losses)
    path = tmp_path / "curvature.0of1/4/00002.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="4/00002.safetensors: damaged .*; delete .*0of1 and run the same command"):
        score(model, tmp_path)
