"""Scores from a gradient store against scores from arrays, for any samples, targets and settings."""

import json

import pytest
import torch
from stored import (
    NAMES,
    ORIGIN,
    SIZES,
    UIDS,
    losses,
    opened,
    random_gradients,
    score_stored,
    stored_gradients,
    write_some,
    written,
)
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, loop, loop_means, tiny_items

from vlmsel import runs
from vlmsel.gradients import Factor
from vlmsel.gradients.projection import Projection
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, Random, TracIn
from vlmsel.scorers.base import SampleScorer
from vlmsel.scoring.arrays import score_gradients
from vlmsel.scoring.passes import FitPart
from vlmsel.scoring.pool_pass import Share
from vlmsel.scoring.pool_table import Records
from vlmsel.scoring.rescore import StoredPool, rescore_pool
from vlmsel.scoring.store_pass import StoreSpec, write_store

SCORERS = [
    TracIn(),
    TracIn(block_scale=True, name="TracIn.scaled"),
    TracIn(cosine=True, name="TracIn.cosine"),
    DataInf(),
    LiSSA(),
    LiSSA.official(),
    HyperINF(),
    HyperINF(damping=10.0, side="short", solver="cholesky", name="short"),
    HyperINF(curvature="fim", dtype="float64", name="fim"),
    Exact(),
]
ROWS = [0, 2, 3, 5]


def assert_near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def by_arrays(scorers, given, targets):
    return torch.cat([score_gradients(given, targets, scorer) for scorer in scorers])


def rows_of(rows):
    return {name: g[rows] for name, g in random_gradients().items()}


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda s: s.name)
@pytest.mark.parametrize("projection", [None, Projection(2, 4)])
def test_scores_are_those_of_the_same_arrays(scorer, projection, tmp_path):
    store = written(tmp_path, projection=projection)
    given = {block.name: stored_gradients(store, block.name) for block in store.blocks}
    found = score_stored(store, [scorer])
    assert torch.equal(found.uids, UIDS) and torch.equal(found.losses, losses())
    assert found.names == ((scorer.name, "one"), (scorer.name, "two"))
    inverts = scorer.name in (
        "HyperINF",
        "fim",
        "Exact",
    )  # at a small damping, which multiplies the rounding of float32
    tolerance = 1e-5 if inverts else 1e-6
    assert_near(found.scores, by_arrays([scorer], given, store.target_gradients()), tolerance)


def test_all_scorers_run_at_once(tmp_path):
    found = score_stored(written(tmp_path), SCORERS)
    assert [name for name, _ in found.names[::2]] == [scorer.name for scorer in SCORERS]
    assert_near(found.scores, by_arrays(SCORERS, random_gradients(), random_gradients(2, seed=1)), 1e-5)
    assert found.details["DataInf"]["layer.bias"]["samples"] == 7 and set(found.details) == {s.name for s in SCORERS}


def test_leaving_samples_out_is_scoring_without_them(tmp_path):
    found = score_stored(written(tmp_path), SCORERS, UIDS[ROWS].tolist())
    assert found.uids.tolist() == UIDS[ROWS].tolist()
    assert_near(found.scores, by_arrays(SCORERS, rows_of(ROWS), random_gradients(2, seed=1)), 1e-5)


def test_curvature_of_some_samples_scores_others(tmp_path):
    """Of all scores from one set of fit samples, those of some samples."""
    store, fit, keep = written(tmp_path), [0, 4, 5, 6], [1, 2, 5]
    found = score_stored(store, SCORERS, UIDS[keep].tolist(), UIDS[fit].tolist())
    whole = score_stored(store, SCORERS, fit=UIDS[fit].tolist())
    assert found.uids.tolist() == UIDS[keep].tolist()
    assert_near(found.scores, whole.scores[:, keep], 1e-5)
    alone = by_arrays(SCORERS, rows_of(fit), random_gradients(2, seed=1))
    assert_near(whole.scores[:, fit], alone, 1e-5)


def test_a_stochastic_recursion_sees_the_batches_that_were_written(tmp_path):
    """The same from one shard per batch, of what remains of the batches 2, 2 and 3: 2, 1 and 1."""
    kept, scorer = [0, 1, 2, 5], LiSSA(batch="stream")
    writer = opened(tmp_path / "single")
    for number, rows in enumerate(([0, 1], [2], [5])):
        factors = {name: Factor.from_dense(g) for name, g in rows_of(rows).items()}
        writer.write_shard(number, [writer.packer.pack(UIDS[rows], losses()[rows], factors)], {})
    writer.write_targets(NAMES, random_gradients(2, seed=1), ORIGIN)
    writer.finish(range(3))
    expected = score_stored(GradientStore.open(tmp_path / "single"), [scorer]).scores
    found = score_stored(written(tmp_path / "two"), [scorer], UIDS[kept].tolist()).scores
    assert_near(found, expected, 1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_scores_in_half_precision_are_near(dtype, tolerance, tmp_path):
    scorers = [TracIn(), DataInf(), HyperINF(damping=10.0)]
    found = score_stored(written(tmp_path, dtype=dtype), scorers).scores
    expected = by_arrays(scorers, random_gradients(), random_gradients(2, seed=1))
    assert_near(found, expected, tolerance)
    assert (found - expected).abs().max() > 0


def test_a_chunk_without_usable_samples_is_no_batch(tmp_path):
    writer = opened(tmp_path)
    writer.write_shard(0, [], {})
    write_some(writer, random_gradients(), (1,))
    writer.write_targets(NAMES, random_gradients(2), ORIGIN)
    writer.finish(range(len(SIZES)))
    assert score_stored(GradientStore.open(tmp_path), [DataInf()]).scores.shape == (2, 3)


@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
def test_a_pool_stored_in_batches_scores_as_a_loop_of_single_samples(spec, tmp_path):
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    items, goals = tiny_items(dtype=torch.float64), {"one": tiny_items([1, 2, 0], torch.float64, seed=1)}
    run = Run(model, items, goals, spec=spec)
    write_store(StoreSpec(str(tmp_path)), run.pool, run.targets, Records([], [], {}), Share(chunk=1), {}, None)
    store, exact, means = (
        GradientStore.open(tmp_path),
        loop(model, items, run.blocks),
        loop_means(model, goals, run.blocks),
    )
    order = [store.uids.tolist().index(item.uid) for item in items]
    # a damping of 10, for inverses at 0.1 multiply the rounding of what was stored by up to their condition number
    hyperinf = HyperINF(damping=10.0, dtype="float64")
    for scorer in (TracIn(), *(make(damping=10.0) for make in (DataInf, LiSSA, Exact)), hyperinf):
        found = score_stored(store, [scorer]).scores[:, order]
        assert_near(found, score_gradients(exact, means, scorer).float(), 1e-6)


# the pool of a store


RECORDS = Records([f"source {uid % 2}" for uid in range(42)], [*range(42)], {0: "no object"})
LOST = {41: ("the gradient is not finite", 0.5)}


def open_pool(tmp_path, leave_out=None):
    """The usable stored samples, one that the store lacks, and a list of uids to leave out."""
    writer = opened(tmp_path / "store")
    if not (tmp_path / "store/targets.safetensors").exists():
        content = runs.read_json(tmp_path / "store/store.json") | {"records": RECORDS.to_json()}
        runs.write_json(tmp_path / "store/store.json", content)
        write_some(writer, random_gradients(), range(2))
        writer.write_shard(2, [], LOST)
        writer.write_targets(NAMES, random_gradients(2, seed=1), ORIGIN)
        writer.finish(range(3))
    if leave_out is not None:
        (tmp_path / "uids.json").write_text(json.dumps(leave_out))
    return StoredPool.open(str(tmp_path / "store"), leave_out=leave_out and str(tmp_path / "uids.json"))


def test_records_come_back(tmp_path):
    pool = open_pool(tmp_path)
    assert pool.records == RECORDS and pool.records.usable() == list(range(1, 42))
    assert pool.lacking == LOST and pool.keep == set(UIDS.tolist())


def test_rescored_samples_and_those_without_scores(tmp_path):
    pool = open_pool(tmp_path, [3, 5, 0])
    found = rescore_pool(pool, [DataInf(), Random(seed=3)], pool.targets(), FitPart(), tmp_path / "run")
    kept = [0, 2, 3, 4, 5]
    assert found.uids[:5].tolist() == UIDS[kept].tolist() and set(found.uids[5:].tolist()) == {3, 5, 41}
    assert found.losses[found.uids == 41].item() == 0.5 and found.losses[found.uids == 3].item() == 0.25
    assert_near(found.scores[:2, :5], by_arrays([DataInf()], rows_of(kept), random_gradients(2, seed=1)), 1e-5)
    assert found.scores[:, :5].isfinite().all() and found.scores[:, 5:].isnan().all()
    assert found.names == (("DataInf", "one"), ("DataInf", "two"), ("Random", "one"), ("Random", "two"))
    left = f"left out by {tmp_path}/uids.json"
    assert found.left_out == {3: left, 5: left, 41: LOST[41][0], 0: "no object"}


def test_fit_samples_are_drawn_from_the_records(tmp_path):
    pool, part = open_pool(tmp_path), FitPart(fit=20, scale=8, seed=3)
    found = rescore_pool(pool, [HyperINF()], pool.targets(), part, tmp_path / "run")
    fit, scale = (set(drawn) & pool.keep for drawn in part.draw(range(1, 42)))
    assert 0 < len(scale) < len(fit) < 7
    assert_near(found.scores[:, :7], score_stored(pool.store, [HyperINF()], None, fit, scale).scores, 1e-6)


def test_targets_are_chosen_by_name(tmp_path):
    pool = open_pool(tmp_path)
    chosen = pool.targets(["two"])
    assert chosen.names == ("two",) and pool.targets().names == NAMES
    for name, v in random_gradients(2, seed=1).items():
        assert torch.equal(chosen.v()[name], v[1:])
    for names, words in ((["one", "three"], "no target 'three'; the gradient store has one, two"), ([], "asked for")):
        with pytest.raises(ValueError, match=words):
            pool.targets(names)


def test_scorers_of_samples_are_told_of_the_records(tmp_path):
    class Longest(SampleScorer):
        name = "Longest"

        def score(self, samples, targets):
            assert samples.sources == [f"source {uid % 2}" for uid in samples.uids.tolist()]
            assert all(len(goal.uids) == 0 for goal in targets.values())
            return -samples.tokens.float().expand(len(targets), -1)

    class Reader(Longest):
        def score(self, samples, targets):
            return samples.texts

    pool = open_pool(tmp_path)
    found = rescore_pool(pool, [Longest()], pool.targets(), FitPart(), tmp_path / "run")
    assert found.scores[1, :7].tolist() == [-uid for uid in UIDS.tolist()]
    with pytest.raises(ValueError, match="a gradient store keeps no texts"):
        rescore_pool(pool, [Reader()], pool.targets(), FitPart(), tmp_path / "other")


def test_inputs_tell_what_changed(tmp_path):
    first, without = open_pool(tmp_path).inputs(), open_pool(tmp_path, [3]).inputs()
    assert first["the store"] == without["the store"]
    assert (first["the samples left out"], without["the samples left out"]) == ("[]", "[3]")
    opened(tmp_path / "store").write_targets(NAMES, random_gradients(2, seed=2), ORIGIN)
    assert open_pool(tmp_path).inputs()["the store"] != first["the store"]


def test_bad_questions_are_refused(tmp_path):
    pool = open_pool(tmp_path)
    with pytest.raises(ValueError, match="no sample to fit curvature or measure damping on"):
        pool.source([0, 41])
    with pytest.raises(ValueError, match=r"uids.json: leaves none of the 7 samples of"):
        open_pool(tmp_path, UIDS.tolist())
    with pytest.raises(ValueError, match=r"uids.json: 1 of 2 entries are no uids of the pool, .* from 0 to 41"):
        open_pool(tmp_path, [3, 42])
