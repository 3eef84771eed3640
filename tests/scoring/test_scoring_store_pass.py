"""A store written in a pass scores as the streamed passes do; killed and resumed, the pass makes the same bytes."""

import pytest
import torch
from stored import bytes_of, score_stored, stored_gradients
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, Stopped, broken, loop, loop_means, stopping, tiny_items

from vlmsel.gradients.store.reader import GradientStore
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import store_pass
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.pool_table import Records
from vlmsel.scoring.store_pass import StoreSpec, shard_spans, write_store

SCORERS = [HyperINF(damping=10.0), DataInf(), LiSSA(), LiSSA(batch="stream", name="stream"), Exact(damping=10.0)]
SCORERS += [TracIn()]
TARGETS = {"a": tiny_items([1, 0], seed=1), "b": tiny_items([2], seed=2)}
NAN, INF = 19, 28  # samples of `pool` that are not finite
TWO = Share(chunk=2)


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm()
    wake_lora(vlm)
    return vlm


def pool():
    items = tiny_items()
    return [*items[:3], broken(items[3], "loss"), *items[4:6], broken(items[6], "pixels"), items[7]]


def run_of(model, items=None, losses=None, targets=TARGETS):
    """In batches of two: two of targets, then four of the pool."""
    return Run(model, pool() if items is None else items, targets, batch_size=2, losses=losses)


def store(run, folder, share=TWO, origin="1", **spec):
    records = Records(["s"] * 32, [3] * 32, {1: "no picture"})
    write_store(StoreSpec(str(folder), **spec), run.pool, run.targets, records, share, {"model": "m"}, origin)


def test_stored_gradients_are_those_of_single_samples(model, tmp_path):
    run = run_of(model)
    store(run, tmp_path)
    found = GradientStore.open(tmp_path)
    good = [item for item in pool() if item.uid not in (NAN, INF)]
    exact, means = loop(model, good, run.blocks), loop_means(model, TARGETS, run.blocks)
    rows = [found.uids.tolist().index(item.uid) for item in good]
    assert sorted(rows) == list(range(6)) and found.targets == ("a", "b")
    for name, dense in exact.items():
        # entries far below the largest are differences of large numbers: float32 rounds at the scale of the block
        atol = 2e-5 * float(dense.abs().max())
        torch.testing.assert_close(stored_gradients(found, name)[rows], dense, rtol=0, atol=atol)
        torch.testing.assert_close(found.target_gradients()[name], means[name], rtol=0, atol=atol)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda scorer: scorer.name)
def test_scores_are_the_streamed_ones_and_broken_samples_have_none(model, scorer, tmp_path):
    run = run_of(model)
    streamed = run.score([scorer], tmp_path / "run", TWO)
    store(run, tmp_path / "store")
    found = score_stored(GradientStore.open(tmp_path / "store"), [scorer])
    scored = torch.isfinite(streamed.scores).all(0)
    assert set(streamed.uids[~scored].tolist()) == {NAN, INF} and found.names == streamed.names
    assert found.uids.tolist() == streamed.uids[scored].tolist()
    expected = streamed.scores[:, scored]
    torch.testing.assert_close(found.scores, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_samples_that_are_not_finite_are_listed_with_what_is_wrong(model, tmp_path):
    store(run_of(model), tmp_path)
    left = GradientStore.open(tmp_path).left_out
    assert {uid: why for uid, (why, _) in left.items()} == dict.fromkeys((NAN, INF), "the loss is not finite")
    assert all(loss != loss for _, loss in left.values())


def test_the_loss_of_a_sample_with_an_infinite_gradient_is_kept(model, tmp_path):
    def losses(subject, batch):
        values = subject.losses(batch)
        return torch.where(batch.uids == 16, values + 1e30 * (values - values.detach()), values)

    store(run_of(model, tiny_items(), losses), tmp_path)
    found = GradientStore.open(tmp_path)
    ((uid, (why, loss)),) = found.left_out.items()
    assert (uid, why) == (16, "the gradient is not finite") and 0 < loss < 100
    assert 16 not in found.uids


def test_a_store_says_where_it_comes_from(model, tmp_path):
    run = run_of(model)
    store(run, tmp_path)
    found = GradientStore.open(tmp_path)
    assert found.about == {"model": "m", "records": 32, "plan": run.pool.digest(range(4))}
    assert Records.from_json(found.records) == Records(["s"] * 32, [3] * 32, {1: "no picture"})


@pytest.mark.parametrize("after", [1, 3, 4, 5])
def test_a_killed_pass_goes_on_to_the_same_bytes(model, after, tmp_path):
    losses, _ = stopping(after)
    with pytest.raises(Stopped):
        store(run_of(model, losses=losses), tmp_path / "stopped")
    shards = len(list((tmp_path / "stopped").glob("shards/*")))
    assert shards == (after >= 4)
    with pytest.raises(FileNotFoundError, match="unfinished gradient store"):
        GradientStore.open(tmp_path / "stopped")
    losses, calls = stopping(99)
    store(run_of(model, losses=losses), tmp_path / "stopped")
    assert len(calls) == (6 if after == 1 else 4) - 2 * shards
    store(run_of(model), tmp_path / "whole")
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


def test_a_finished_store_is_not_written_again(model, tmp_path):
    store(run_of(model), tmp_path)
    expected = bytes_of(tmp_path)
    losses, calls = stopping(0)
    store(run_of(model, losses=losses), tmp_path)
    assert not calls and bytes_of(tmp_path) == expected


def test_targets_of_another_origin_take_the_place_of_those_there(model, tmp_path):
    store(run_of(model), tmp_path)
    losses, calls = stopping(99)
    turned = {"a": TARGETS["b"], "b": TARGETS["a"]}
    run = run_of(model, losses=losses, targets=turned)
    store(run, tmp_path, origin="2")
    assert len(calls) == 2
    found = GradientStore.open(tmp_path)
    for name, mean in loop_means(model, turned, run.blocks).items():
        atol = 2e-5 * float(mean.abs().max())
        torch.testing.assert_close(found.target_gradients()[name], mean, rtol=0, atol=atol)


def test_jobs_with_shares_write_one_store(model, tmp_path, capsys):
    store(run_of(model), tmp_path / "two", Share(0, 2, 2))
    with pytest.raises(FileNotFoundError, match="unfinished gradient store"):
        GradientStore.open(tmp_path / "two")
    assert "gradients of" not in capsys.readouterr().out
    store(run_of(model), tmp_path / "two", Share(1, 2, 2))
    assert f"{tmp_path}/two: gradients of 8 samples on " in capsys.readouterr().out
    store(run_of(model), tmp_path / "one")
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "one")


def test_a_chunk_that_would_fill_the_memory_is_cut(monkeypatch):
    assert shard_spans([1] * 8, 100, 3) == [range(0, 3), range(3, 6), range(6, 8)]
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 200)
    assert shard_spans([1] * 8, 100, 3) == [range(0, 2), range(2, 3), range(3, 5), range(5, 6), range(6, 8)]
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 1)
    assert shard_spans([1] * 8, 100, 3) == [range(n, n + 1) for n in range(8)]


def test_a_cut_store_scores_alike(model, tmp_path, monkeypatch):
    store(run_of(model), tmp_path / "whole")
    monkeypatch.setattr(store_pass, "SHARD_BYTES", 1)
    store(run_of(model), tmp_path / "cut")
    whole, cut = (GradientStore.open(tmp_path / name) for name in ("whole", "cut"))
    assert (len(whole.shards), len(cut.shards)) == (2, 4)
    for scorer in (LiSSA(batch="stream"), DataInf()):  # the first sees batches one by one
        found, expected = (score_stored(one, [scorer]).scores for one in (cut, whole))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


def test_shards_of_other_batches_are_refused(model, tmp_path):
    store(run_of(model), tmp_path)
    with pytest.raises(ValueError, match="1 shards were written by a run with other batches, the first: 00000002"):
        store(run_of(model), tmp_path, Share(chunk=4))


def test_a_chunk_of_broken_samples_is_an_empty_shard(model, tmp_path):
    items = [broken(item, "loss") for item in tiny_items()[:4]] + tiny_items()[4:]
    store(run_of(model, items), tmp_path)
    assert len(GradientStore.open(tmp_path).uids) == 4


@pytest.mark.parametrize("spec", [{"dtype": "bfloat16"}, {"projection": 4}])
def test_dtype_and_projection_are_kept(model, spec, tmp_path):
    store(run_of(model), tmp_path, **spec)
    content = GradientStore.open(tmp_path).settings.to_json()
    assert content["dtype"] == spec.get("dtype", "float32")
    assert content["projection"] == ({"rows": 4, "cols": 4, "seed": 0} if "projection" in spec else None)
    with pytest.raises(ValueError, match="holds a gradient store of other settings"):
        store(run_of(model), tmp_path)
