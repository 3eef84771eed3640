"""A store written in a pass scores as the streamed passes do; killed and resumed, the pass makes the same bytes."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import OBJECTIVE, broken, job, loop, loop_means, tiny_items, tiny_plan, tiny_streams
from vlmsel.scoring.store_scores import score_store

from vlmsel.gradients import select_blocks
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.records import Records, read_left_out
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import pool_pass as run
from vlmsel.scoring import store_pass
from vlmsel.scoring.pool_pass import Share, score_pool
from vlmsel.scoring.store_pass import shard_spans, store_pool

SCORERS = [HyperINF(damping=10.0), DataInf(), LiSSA(), LiSSA(batch="stream", name="stream"), Exact(damping=10.0)]
SCORERS += [TracIn()]
TARGETS = {"a": tiny_items([1, 0], seed=1), "b": tiny_items([2], seed=2)}
NAN, INF = 19, 28  # samples of `pool` that are not finite


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 2)


def pool():
    items = tiny_items()
    return [*items[:3], broken(items[3], "loss"), *items[4:6], broken(items[6], "pixels"), items[7]]


def store(model, folder, items=None, objective=OBJECTIVE, share=Share(), size=2, targets=TARGETS, origin="1", **more):  # noqa: B008
    items = pool() if items is None else items
    blocks = select_blocks(model, "projector+lora")
    writer = StoreWriter(folder, blocks, about={"model": "m"}, **more)
    streams = tiny_streams(items, targets, size)
    return store_pool(job(model, blocks, objective), tiny_plan(items, size), streams, writer, share, origin)


def stopping(after):
    calls = []

    def losses(model, batch):
        calls.append(batch)
        if len(calls) > after:
            raise Stopped
        return OBJECTIVE.losses(model, batch)

    return OBJECTIVE._replace(losses=losses), calls


def bytes_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stored_gradients_are_those_of_single_samples(model, tmp_path):
    items = pool()
    assert store(model, tmp_path, items)
    found, blocks = GradientStore.open(tmp_path), select_blocks(model, "projector+lora")
    good = [item for item in items if item.uid not in (NAN, INF)]
    exact, means = loop(model, good, blocks), loop_means(model, TARGETS, blocks)
    rows = [found.uids.tolist().index(item.uid) for item in good]
    assert sorted(rows) == list(range(6)) and found.targets == ("a", "b")
    for name, dense in exact.items():
        # entries far below the largest are differences of large numbers: float32 rounds at the scale of the block
        atol = 2e-5 * float(dense.abs().max())
        torch.testing.assert_close(found.gradients(name)[rows], dense, rtol=0, atol=atol)
        torch.testing.assert_close(found.target_gradients()[name], means[name], rtol=0, atol=atol)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
def test_scores_are_the_streamed_ones_and_broken_samples_have_none(model, scorer, tmp_path):
    items, blocks = pool(), select_blocks(model, "projector+lora")
    streamed = score_pool(job(model, blocks), tiny_plan(items, 2), tiny_streams(items, TARGETS, 2), [scorer], tmp_path)
    store(model, tmp_path / "store", items)
    uids, names, scores = score_store(GradientStore.open(tmp_path / "store"), [scorer])
    scored = torch.isfinite(streamed.scores).all(0)
    assert set(streamed.uids[~scored].tolist()) == {NAN, INF} and names == streamed.names
    assert uids.tolist() == streamed.uids[scored].tolist()
    expected = streamed.scores[:, scored]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_samples_that_are_not_finite_are_listed_with_what_is_wrong(model, tmp_path):
    store(model, tmp_path)
    left = read_left_out(tmp_path)
    assert {uid: why for uid, (why, _) in left.items()} == dict.fromkeys((NAN, INF), "the loss is not finite")
    assert all(loss != loss for _, loss in left.values())


def test_the_loss_of_a_sample_with_an_infinite_gradient_is_kept(model, tmp_path):
    def losses(model, batch):
        values = OBJECTIVE.losses(model, batch)
        return torch.where(batch.uids == 16, values + 1e30 * (values - values.detach()), values)

    store(model, tmp_path, tiny_items(), OBJECTIVE._replace(losses=losses))
    ((uid, (why, loss)),) = read_left_out(tmp_path).items()
    assert (uid, why) == (16, "the gradient is not finite") and 0 < loss < 100
    assert 16 not in GradientStore.open(tmp_path).uids


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_a_killed_pass_goes_on_to_the_same_bytes(model, after, tmp_path):
    """Two batches of targets, then four of the pool, two in each shard."""
    objective, _ = stopping(after)
    with pytest.raises(Stopped):
        store(model, tmp_path / "stopped", objective=objective)
    shards = len(list((tmp_path / "stopped/shards").iterdir()))
    assert shards == (after >= 4) and not (tmp_path / "stopped/store.json").exists()
    objective, calls = stopping(99)
    assert store(model, tmp_path / "stopped", objective=objective)
    assert len(calls) == (6 if after == 1 else 4) - 2 * shards
    store(model, tmp_path / "whole")
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


def test_a_finished_store_is_not_written_again(model, tmp_path):
    store(model, tmp_path)
    objective, calls = stopping(0)
    assert store(model, tmp_path, objective=objective) and not calls


def test_targets_of_another_origin_take_the_place_of_those_there(model, tmp_path):
    store(model, tmp_path)
    objective, calls = stopping(99)
    assert store(model, tmp_path, objective=objective, targets={"a": TARGETS["b"], "b": TARGETS["a"]}, origin="2")
    assert len(calls) == 2
    found, blocks = GradientStore.open(tmp_path), select_blocks(model, "projector")
    expected = loop_means(model, {"a": TARGETS["b"], "b": TARGETS["a"]}, blocks)
    for name, mean in expected.items():
        atol = 2e-5 * float(mean.abs().max())
        torch.testing.assert_close(found.target_gradients()[name], mean, rtol=0, atol=atol)


def test_jobs_with_shares_write_one_store(model, tmp_path):
    assert not store(model, tmp_path / "two", share=Share(0, 2))
    assert not (tmp_path / "two/store.json").exists()
    assert store(model, tmp_path / "two", share=Share(1, 2))
    store(model, tmp_path / "one")
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_a_chunk_that_would_fill_the_memory_is_cut(model, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "CHUNK", 3)
    items, blocks = tiny_items(), select_blocks(model, "projector+lora")
    plan, settings = tiny_plan(items, 1), StoreWriter(tmp_path, blocks).settings
    assert shard_spans(plan, settings) == [range(0, 3), range(3, 6), range(6, 8)]
    each = store_pass.store_bytes(1, blocks)
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 2 * each)
    cut = [range(0, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 8)]
    assert shard_spans(plan, settings) == cut
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 1)
    assert shard_spans(plan, settings) == [range(n, n + 1) for n in range(8)]


def test_a_cut_store_scores_alike(model, tmp_path, monkeypatch):
    store(model, tmp_path / "whole")
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 1)
    store(model, tmp_path / "cut")
    whole, cut = (GradientStore.open(tmp_path / name) for name in ("whole", "cut"))
    assert (len(whole.shards), len(cut.shards)) == (2, 4)
    for scorer in (LiSSA(batch="stream"), DataInf()):  # the first sees batches one by one
        found, expected = (score_store(one, [scorer])[2] for one in (cut, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_a_chunk_of_broken_samples_is_an_empty_shard(model, tmp_path):
    items = [broken(item, "loss") for item in tiny_items()[:4]] + tiny_items()[4:]
    assert store(model, tmp_path, items)
    assert len(GradientStore.open(tmp_path).uids) == 4


@pytest.mark.parametrize("more", [{"dtype": "bfloat16"}, {"projection": Projection(4, 4)}])
def test_dtype_and_projection_are_kept(model, more, tmp_path):
    store(model, tmp_path, **more)
    settings = GradientStore.open(tmp_path).settings
    assert {name: getattr(settings, name) for name in more} == more
    with pytest.raises(ValueError, match="holds a gradient store of other settings"):
        store(model, tmp_path)


# records


def test_records_come_back(model, tmp_path):
    settings = StoreWriter(tmp_path, select_blocks(model, "projector")).settings
    records = Records(["vqa", "", "text"], [7, 0, 3], {1: "no object"})
    records.write(tmp_path, settings)
    assert Records.read(tmp_path, settings) == records and records.usable() == [0, 2]


def test_records_of_another_store_are_refused(model, tmp_path):
    settings = [
        StoreWriter(tmp_path / spec, select_blocks(model, spec)).settings for spec in ("projector", "projector+lora")
    ]
    with pytest.raises(FileNotFoundError, match="records.parquet: no such file; write the store with"):
        Records.read(tmp_path, settings[0])
    Records(["a"], [1], {}).write(tmp_path, settings[0])
    with pytest.raises(ValueError, match="records.parquet: belongs to another gradient store"):
        Records.read(tmp_path, settings[1])
    (tmp_path / "records.parquet").write_bytes(b"half")
    with pytest.raises(ValueError, match="records.parquet: damaged"):
        Records.read(tmp_path, settings[0])


def test_a_million_records_take_a_few_megabytes(model, tmp_path):
    settings = StoreWriter(tmp_path, select_blocks(model, "projector")).settings
    count = 10**6
    lengths = torch.randint(20, 2048, (count,), generator=torch.Generator().manual_seed(0)).tolist()
    Records(["coco", "gqa", "text", "ocr"] * (count // 4), lengths, {}).write(tmp_path, settings)
    assert (tmp_path / "records.parquet").stat().st_size < 4e6
