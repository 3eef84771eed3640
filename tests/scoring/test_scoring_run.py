"""A scoring run that is stopped anywhere and started again ends with the same numbers."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, Stopped, broken, stopping, tiny_items, tiny_plan

from vlmsel.scorers import DataInf, HyperINF, TracIn
from vlmsel.scoring.batches import seeded_part
from vlmsel.scoring.pool_pass import Share

SCORERS = [TracIn(), DataInf(), HyperINF(damping=10.0)]
TWO = Share(chunk=2)


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


def pool():
    """Eight samples, the fourth of which is not finite."""
    items = tiny_items()
    return [*items[:3], broken(items[3], "loss"), *items[4:]]


def score(model, out, items=None, losses=None, scorers=SCORERS, spec="projector+lora"):
    items, targets = pool() if items is None else items, {"a": tiny_items([1, 0], seed=1), "b": tiny_items([2], seed=2)}
    return Run(model, items, targets, batch_size=1, losses=losses, spec=spec).score(scorers, out, TWO)


def assert_same(one, other):
    assert torch.equal(one.uids, other.uids) and one.names == other.names and one.details == other.details
    for field in ("losses", "scores"):
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=0, atol=0, equal_nan=True)
    assert one.left_out == other.left_out == {19: "the loss is not finite"}


@pytest.mark.parametrize("after", [15, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 6, 19, 22, 26))])
def test_a_stopped_run_goes_on(model, after, tmp_path):
    """3 batches of targets, 8 to measure damping on, 8 of curvature, then 8 in chunks of 2."""
    losses, _ = stopping(after)
    with pytest.raises(Stopped):
        score(model, tmp_path / "stopped", losses=losses)
    assert not list((tmp_path / "stopped").rglob("*.part"))
    assert (tmp_path / "stopped" / "directions.safetensors").exists() == (after >= 19)
    assert_same(score(model, tmp_path / "stopped"), score(model, tmp_path / "whole"))


def test_only_what_is_missing_is_done_again(model, tmp_path):
    expected = score(model, tmp_path)
    (tmp_path / "parts" / "00000004.safetensors").unlink()
    (tmp_path / "parts" / "00000002.safetensors.vlmsel.here.12.part").write_bytes(b"half a file")
    losses, calls = stopping(99)
    assert_same(score(model, tmp_path, losses=losses), expected)
    assert len(calls) == 2
    calls.clear()
    assert_same(score(model, tmp_path, losses=losses), expected)
    assert not calls


def test_a_sample_that_only_curvature_found_broken_stays_reported(model, tmp_path):
    """Its squared norm leaves float32's range while its inner products do not."""

    def losses(subject, batch):
        values = subject.losses(batch)
        return torch.where(batch.uids == 16, values * 1e19, values)

    first = score(model, tmp_path, tiny_items(), losses)
    row = first.uids.tolist().index(16)
    assert first.left_out == {16: "the gradient is not finite"} and torch.isnan(first.scores[:, row]).all()
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    again = score(model, tmp_path, tiny_items(), losses)
    assert again.left_out == {16: "the gradient is not finite"}
    torch.testing.assert_close(again.scores, first.scores, rtol=0, atol=0, equal_nan=True)


def test_parts_of_another_pool_are_refused(model, tmp_path):
    score(model, tmp_path)
    with pytest.raises(ValueError, match=r"0000000.\.safetensors: holds other samples; choose another --out"):
        score(model, tmp_path, pool()[:-1])


@pytest.mark.parametrize("name", ["directions.safetensors", "parts/00000002.safetensors"])
def test_a_damaged_file_is_named(model, name, tmp_path):
    expected = score(model, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{name}: damaged .*; delete it and run the same command again"):
        score(model, tmp_path)
    (tmp_path / name).unlink()
    assert_same(score(model, tmp_path), expected)


@pytest.mark.parametrize("other", [{"scorers": [TracIn()]}, {"spec": "projector"}])
def test_directions_of_another_run_are_refused(model, other, tmp_path):
    score(model, tmp_path)
    with pytest.raises(ValueError, match="made for other scorers, targets or blocks"):
        score(model, tmp_path, **other)


def test_a_pool_of_broken_samples_has_no_scores(model, tmp_path):
    items = [broken(item, "loss") for item in tiny_items([0, 1])]
    found = score(model, tmp_path, items, scorers=[TracIn()])
    assert torch.isnan(found.scores).all() and torch.isnan(found.losses).all() and len(found.left_out) == 2


def test_training_mode_makes_no_difference(model, tmp_path):
    expected = score(model, tmp_path / "a")
    model.train()
    assert_same(score(model, tmp_path / "b"), expected)
    assert not any(p.grad is not None for p in model.parameters())


def test_uids_say_which_sample_a_score_belongs_to(model, tmp_path):
    shifted = [replace(item, uid=item.uid + 1000) for item in pool()]
    expected, found = score(model, tmp_path / "a"), score(model, tmp_path / "b", shifted)
    assert torch.equal(found.uids, expected.uids + 1000) and list(found.left_out) == [1019]


def test_a_seeded_part_is_a_function_of_the_seed():
    positions = list(range(5, 100))
    part = seeded_part(positions, 10, 3)
    assert part == seeded_part(positions, 10, 3) == sorted(set(part)) and set(part) < set(positions)
    assert part != seeded_part(positions, 10, 4)
    assert seeded_part(positions, None, 0) == seeded_part(positions, 1000, 0) == positions
    with pytest.raises(ValueError, match="at least 1 sample, got 0"):
        seeded_part(positions, 0, 0)


def test_sizes_of_batches_are_counted_once_for_a_whole_pass(model):
    """A pass asks for them chunk by chunk."""
    items = tiny_items()
    plan = tiny_plan(items, 1)
    groups = Counted(plan.groups)
    source = Run(model, items, {"any": items[:1]}).source(replace(plan, groups=groups))
    for _ in range(50):
        assert source.sizes[3] == 1 and source.plan.sizes is source.sizes
    assert groups.walks == 1


class Counted(list):
    walks = 0

    def __iter__(self):
        self.walks += 1
        return super().__iter__()


def test_batches_from_workers_are_the_same():
    plan = tiny_plan(tiny_items(), 3)
    alone, apart = list(plan.batches()), list(replace(plan, workers=1).batches())
    assert [b.uids.tolist() for b in alone] == [b.uids.tolist() for b in apart]
    assert plan.sizes == [3, 3, 2] and [len(b.uids) for b in plan.batches([1])] == [3]
