"""A curvature pass that is killed anywhere goes on with the same bits."""

import json

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import OBJECTIVE, job, tiny_items, tiny_plan, tiny_streams

from vlmsel.gradients import select_blocks
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import progress
from vlmsel.scoring.pool_pass import score_pool

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


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


@pytest.fixture
def always(monkeypatch):
    """Write the file after every batch."""
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "SHARE", 0)


def score(model, out, objective=OBJECTIVE, batch_size=1):
    streams = tiny_streams(tiny_items(), {"a": tiny_items([1, 0], seed=1)}, batch_size)
    work = job(model, select_blocks(model, "projector+lora"), objective)
    return score_pool(work, tiny_plan(tiny_items(), batch_size), streams, SCORERS, out)


def stopping(after):
    calls = []

    def losses(model, batch):
        calls.append(batch)
        if len(calls) > after:
            raise Stopped
        return OBJECTIVE.losses(model, batch)

    return OBJECTIVE._replace(losses=losses), calls


@pytest.mark.parametrize("seen", [1, 4, 7])
def test_a_pass_goes_on_behind_the_last_file(model, always, seen, tmp_path):
    objective, _ = stopping(BEFORE + seen)
    with pytest.raises(Stopped):
        score(model, tmp_path / "stopped", objective)
    assert json.loads((tmp_path / "stopped/curvature.0of1/state.json").read_text())["batches"] == seen
    objective, calls = stopping(99)
    found = score(model, tmp_path / "stopped", objective)
    assert len(calls) == BEFORE + (8 - seen) + 8
    expected = score(model, tmp_path / "whole")
    assert torch.equal(found.scores, expected.scores) and torch.equal(found.losses, expected.losses)
    assert found.details == expected.details
    assert not list((tmp_path / "stopped").glob("curvature*"))


def test_files_are_not_written_all_the_time(model, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(progress.Progress, "save", lambda self, batches: saved.append(batches))
    score(model, tmp_path)
    assert not saved


def test_a_file_of_another_plan_is_no_help(model, always, tmp_path):
    objective, _ = stopping(BEFORE + 4)
    with pytest.raises(Stopped):
        score(model, tmp_path / "a", objective)
    found, expected = score(model, tmp_path / "a", batch_size=2), score(model, tmp_path / "b", batch_size=2)
    assert torch.equal(found.scores, expected.scores)


def test_a_damaged_file_is_named(model, always, tmp_path):
    objective, _ = stopping(BEFORE + 4)
    with pytest.raises(Stopped):
        score(model, tmp_path, objective)
    path = tmp_path / "curvature.0of1/4/00002.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="4/00002.safetensors: damaged .*; delete .*0of1 and run the same command"):
        score(model, tmp_path)
