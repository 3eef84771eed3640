"""Memory that runs out: batches are halved, later ones are smaller, a sample that does not fit alone is reported."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import COLLATE, Run, tiny_items

from vlmsel.gradients import Factor
from vlmsel.scorers import DataInf, HyperINF, TracIn
from vlmsel.scoring.curvature import feed
from vlmsel.scoring.halving import Budget, in_pieces, out_of_memory

SCORERS = [TracIn(), DataInf(), HyperINF(damping=10.0)]


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm(dtype=torch.float64)
    wake_lora(vlm)
    return vlm


def scores(model, out, losses=None, items=None):
    """Scores and losses by uid, what was left out, and the tokens that fit."""
    items = tiny_items(dtype=torch.float64) if items is None else items
    run = Run(model, items, {"a": tiny_items([1, 0, 2], torch.float64, seed=1)}, batch_size=4, losses=losses)
    found = run.score(SCORERS, out)
    order = found.uids.argsort()
    return found.scores[:, order], found.losses[order], found.left_out, run.budget.tokens


def tight(limit, tried=None):
    """Losses that run out of memory on batches of more than `limit` samples."""

    def losses(subject, batch):
        if tried is not None:
            tried.append((len(batch.uids), batch.input_ids.numel()))
        if len(batch.uids) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return subject.losses(batch)

    return losses


@pytest.mark.parametrize("limit", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_scores_are_the_same_in_halves(model, limit, tmp_path):
    expected, losses, _, _ = scores(model, tmp_path / "a")
    found, own, left_out, tokens = scores(model, tmp_path / "b", tight(limit))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(own, losses)
    assert not left_out and tokens is not None


def test_later_batches_are_no_larger_than_what_fitted(model, tmp_path, capsys):
    tried = []
    _, _, _, most = scores(model, tmp_path, tight(2, tried))
    failed = [size for size, _ in tried if size > 2]
    assert len(failed) <= 2 and all(tokens <= 2 * most for _, tokens in tried[-4:])
    assert capsys.readouterr().out.count("out of memory on a batch of") == len(failed)


@pytest.mark.slow
def test_a_sample_that_does_not_fit_alone_is_reported_and_moves_no_other(model, tmp_path):
    def losses(subject, batch):
        if 31 in batch.uids.tolist():
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return subject.losses(batch)

    found, own, left_out, _ = scores(model, tmp_path / "a", losses)
    assert left_out == {31: "it does not fit into memory even alone"}
    assert torch.isnan(found[:, 7]).all() and torch.isnan(own[7]) and torch.isfinite(own[:7]).all()
    items = [item for item in tiny_items(dtype=torch.float64) if item.uid != 31]
    rest, _, _, _ = scores(model, tmp_path / "b", items=items)
    torch.testing.assert_close(found[:, :7], rest, rtol=1e-8, atol=1e-12)


def test_a_target_that_does_not_fit_ends_the_run(model, tmp_path):
    def losses(subject, batch):
        if 10 in batch.uids.tolist() and len(batch.uids) <= 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return subject.losses(batch)

    with pytest.raises(ValueError, match="target a: sample 10: it does not fit into memory even alone; remove it"):
        scores(model, tmp_path, losses)


def test_other_errors_are_not_swallowed(model, tmp_path):
    def losses(subject, batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        scores(model, tmp_path, losses)
    assert not out_of_memory(RuntimeError("size mismatch")) and out_of_memory(MemoryError())


class Small:
    """A statistic that takes in at most two samples at once."""

    def __init__(self):
        self.seen = []

    def update(self, factor):
        if factor.samples > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.seen += factor.dense().flatten().tolist()


def test_a_statistic_is_fed_in_halves():
    small = Small()
    feed(small, Factor.from_dense(torch.arange(7.0)[:, None, None]))
    assert small.seen == list(range(7))


def test_a_statistic_that_cannot_take_one_sample_ends_the_run():
    class Full(Small):
        def update(self, factor):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        feed(Full(), Factor.from_dense(torch.ones(3, 1, 1)))


def test_halves_of_a_batch_are_what_their_samples_make():
    items = tiny_items([1, 0, 2, 1, 0, 3])
    batch = COLLATE(items)
    for half, own in zip(batch.halves(), (items[:3], items[3:]), strict=True):
        alone = COLLATE(own)
        for name in ("input_ids", "labels", "attention_mask", "image_samples", "uids"):
            assert torch.equal(getattr(half, name), getattr(alone, name)), name
        shown = [None if b.pixel_values is None else b.pixel_values[b.image_index] for b in (half, alone)]
        assert torch.equal(*shown)
        assert len(half.pixel_values) == len(alone.pixel_values)


def test_halves_without_images():
    first, second = COLLATE(tiny_items([0, 0, 1])).halves()
    assert first.pixel_values is None and len(first.uids) == 1 and len(second.pixel_values) == 1


def test_pieces_come_in_the_order_of_the_samples():
    batch, budget = COLLATE(tiny_items([0] * 7)), Budget()

    def work(piece):
        if len(piece.uids) > 2:
            raise MemoryError
        return piece.uids.tolist()

    found = [uids for _, uids in in_pieces(batch, work, lambda piece: [], budget)]
    assert sum(found, []) == batch.uids.tolist() and max(map(len, found)) <= 2
