"""Stored gradients against those that were given, and scores from the store against scores from arrays."""

import json
import math
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import row_samples, sample_losses, tiny_vlm, wake_lora
from tiny_pool import COLLATE, loop, loop_means, tiny_items
from vlmsel.scoring.store_scores import score_store

from vlmsel.gradients import Block, Factor, capture, select_blocks
from vlmsel.gradients.embedding_factor import LookupFactor
from vlmsel.gradients.factors import DenseFactor, OuterFactor
from vlmsel.gradients.projection import Projection, project, projected
from vlmsel.gradients.store import format as store_format
from vlmsel.gradients.store import writer as store_writer
from vlmsel.gradients.store.format import store_bytes
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.gradients.sum_factor import SumFactor
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, Random, TracIn, score_gradients
from vlmsel.scoring import store_scores

BLOCKS = [Block("layer.weight", "layer", 6, 5), Block("layer.bias", "layer", 1, 6), Block("head.weight", "head", 3, 9)]
UIDS = torch.tensor([40, 3, 17, 8, 22, 31, 5])
SIZES = [[2, 2], [3]]  # samples of each batch of each shard
NAMES = ["one", "two"]
HYPERINF = HyperINF(damping=10.0, dtype="float64", name="float64")
SCORERS = [
    TracIn(),
    TracIn(block_scale=True, name="TracIn.scaled"),
    DataInf(),
    LiSSA(),
    LiSSA.official(),
    HyperINF(),
    HyperINF(damping=10.0, side="short", solver="cholesky", name="short"),
    HyperINF(curvature="fim", dtype="float64", name="fim"),
    Exact(),
    Random(seed=3),
]


def gradients(count=7, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {b.name: torch.randn(count, b.rows, b.cols, generator=generator, dtype=dtype) for b in BLOCKS}


def losses():
    return torch.arange(len(UIDS)) / 4


def shard_batches(given, start, sizes):
    """The batches of a shard whose first sample is at `start`."""
    stops = torch.tensor([start, *sizes]).cumsum(0).tolist()
    return [
        {name: Factor.from_dense(g[a:b]) for name, g in given.items()}
        for a, b in zip(stops[:-1], stops[1:], strict=True)
    ]


def write_some(writer, given, numbers):
    start = 0
    for number, sizes in enumerate(SIZES):
        span = slice(start, start + sum(sizes))
        if number in numbers:
            writer.write_shard(number, UIDS[span], losses()[span], shard_batches(given, start, sizes))
        start += sum(sizes)


def written(folder, given=None, dtype="float32", projection=None):
    given = gradients() if given is None else given
    writer = StoreWriter(folder, BLOCKS, dtype, projection, {"model": "m", "pool": [1, 2]})
    write_some(writer, given, (0, 1))
    writer.write_targets(NAMES, gradients(2, seed=1))
    writer.finish()
    return GradientStore.open(folder)


def assert_near(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * other.abs().max().item())


def test_a_store_comes_back_as_it_was(tmp_path):
    store, given, targets = written(tmp_path), gradients(), gradients(2, seed=1)
    assert torch.equal(store.uids, UIDS) and torch.equal(store.losses, losses())
    assert store.targets == ("one", "two") and dict(store.about) == {"model": "m", "pool": [1, 2]}
    assert list(store.blocks) == BLOCKS
    for name in given:
        assert torch.equal(store.gradients(name), given[name])
        assert torch.equal(store.target_gradients()[name], targets[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "store.json", "targets.safetensors"]


def test_batches_come_shard_by_shard_and_in_part(tmp_path):
    store, given = written(tmp_path), gradients()
    assert [uids.tolist() for uids, _, _ in store.batches()] == [[40, 3, 17, 8], [22, 31, 5]]
    ((uids, found_losses, factors),) = store.batches(keep={8, 40})
    assert uids.tolist() == [40, 8] and found_losses.tolist() == [0, 0.75]
    for name, factor in factors.items():
        assert torch.equal(factor.dense(), given[name][[0, 3]])
        assert torch.equal(store.gradients(name, [8, 40]), given[name][[0, 3]])


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("bfloat16", 8), ("float16", 11)])
def test_entries_are_rounded_once_to_nearest(dtype, bits, tmp_path):
    given = gradients(dtype=torch.float64)
    store = written(tmp_path, given, dtype)
    for name, exact in given.items():
        found = store.gradients(name)
        assert found.dtype == torch.float32
        assert ((found - exact).abs() <= 2.0**-bits * exact.abs()).all()
        assert ((found - exact).abs() > 2.0 ** -(bits + 2) * exact.abs()).any()


def test_gradients_formed_in_pieces_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmsel.gradients.factors.LIMIT", 40)  # a sample of the largest block at a time
    store = written(tmp_path)
    assert all(torch.equal(store.gradients(name), g) for name, g in gradients().items())


def test_losses_and_uids_stay_exact_in_half_precision(tmp_path):
    store = written(tmp_path, dtype="float16")
    assert torch.equal(store.uids, UIDS) and torch.equal(store.losses, losses())


def test_a_sample_out_of_range_is_named(tmp_path):
    given = gradients()
    given["head.weight"][5, 1, 2] = 1e5
    with pytest.raises(
        ValueError, match=r"sample 31 on block head.weight leaves the range of float16; use dtype bfloat"
    ):
        written(tmp_path / "a", given, "float16")
    assert not list((tmp_path / "a").rglob("*.part")) and not (tmp_path / "a" / "store.json").exists()
    assert written(tmp_path / "b", given, "bfloat16").gradients("head.weight")[5, 1, 2].item() == pytest.approx(
        1e5, 0.01
    )


def test_float16_refuses_gradients_that_it_would_lose(tmp_path):
    tiny = {name: 1e-7 * g for name, g in gradients().items()}
    with pytest.raises(ValueError, match="block layer.weight: gradients are too small for float16, .* % of their norm"):
        written(tmp_path / "a", tiny, "float16")
    mixed = gradients()
    mixed["layer.weight"][2] *= 1e-7  # one sample learnt by heart among others
    assert written(tmp_path / "b", mixed, "float16").gradients("layer.weight")[2].abs().max() < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_samples_that_are_not_finite_are_refused(value, tmp_path):
    """1e30 is in range, but its square is not: the streamed passes leave such a sample out as well."""
    given = gradients()
    given["layer.bias"][1] = value
    with pytest.raises(
        ValueError, match="the gradient of sample 3 on block layer.bias is not finite; leave the sample"
    ):
        written(tmp_path, given)
    writer = StoreWriter(tmp_path / "b", BLOCKS)
    with pytest.raises(ValueError, match="the loss of sample 9 is not finite"):
        writer.write_shard(0, torch.tensor([9]), torch.tensor([math.nan]), shard_batches(gradients(), 0, [1]))
    with pytest.raises(ValueError, match=r"target two: its gradient on block layer.bias is not finite"):
        writer.write_targets(NAMES, {name: g[[0, 1]] for name, g in given.items()})
    assert not list((tmp_path / "b" / "shards").iterdir())


# going on


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_killed_writer_goes_on(tmp_path):
    expected = written(tmp_path / "whole")
    half = tmp_path / "half"
    write_some(StoreWriter(half, BLOCKS, about={"model": "m", "pool": [1, 2]}), gradients(), (0,))
    (half / "shards" / "00000001.safetensors.123.part").write_bytes(b"half a shard")
    stamp = (half / "shards" / "00000000.safetensors").stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="half: unfinished gradient store"):
        GradientStore.open(half)
    writer = StoreWriter(half, BLOCKS, about={"model": "m", "pool": [1, 2]})
    assert writer.has_shard(0) and not writer.has_shard(1) and not writer.has_targets(NAMES)
    assert writer.shard_uids(0).tolist() == [40, 3, 17, 8]
    store = written(half)
    assert (half / "shards" / "00000000.safetensors").stat().st_mtime_ns == stamp
    assert bytes_of(half) == bytes_of(tmp_path / "whole") and torch.equal(store.uids, expected.uids)


def test_a_writer_killed_at_once_leaves_a_folder_that_may_be_used(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "unfinished.json.part").write_text("{")
    assert len(written(tmp_path).uids) == 7


def test_several_writers_share_the_shards(tmp_path):
    expected = written(tmp_path / "alone")
    writers = [StoreWriter(tmp_path / "two", BLOCKS, about=expected.about) for _ in range(2)]
    for number, writer in enumerate(writers):
        write_some(writer, gradients(), (number,))
    writers[0].write_targets(NAMES, gradients(2, seed=1))
    with pytest.raises(ValueError, match="1 shards were written by a run with other batches"):
        writers[0].finish()
    writers[0].finish(range(2))
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "alone")


def test_targets_may_be_replaced_in_a_finished_store(tmp_path):
    written(tmp_path)
    writer = StoreWriter(tmp_path, BLOCKS, about={"model": "m", "pool": [1, 2]})
    assert writer.has_targets(NAMES) and not writer.has_targets(["one"])
    writer.write_targets(["three"], gradients(1, seed=5))
    store = GradientStore.open(tmp_path)
    assert store.targets == ("three",)
    assert torch.equal(store.target_gradients()["layer.bias"], gradients(1, seed=5)["layer.bias"])


def test_a_store_is_finished_only_when_all_is_there(tmp_path):
    writer = StoreWriter(tmp_path, BLOCKS)
    with pytest.raises(ValueError, match="without shards"):
        writer.finish()
    write_some(writer, gradients(), (0,))
    with pytest.raises(ValueError, match="1 of 2 shards are missing, the first: 00000001.safetensors"):
        writer.finish([0, 1])
    with pytest.raises(ValueError, match="the targets' gradients are missing"):
        writer.finish()
    writer.write_targets(NAMES, gradients(2))
    other = StoreWriter(tmp_path, BLOCKS)
    other.write_shard(3, UIDS[:1], losses()[:1], shard_batches(gradients(), 0, [1]))
    with pytest.raises(ValueError, match="1 shards were written by a run with other batches, the first: 00000000"):
        other.finish()
    with pytest.raises(ValueError, match="sample 40 is there twice"):
        other.finish([0, 3])
    assert not (tmp_path / "store.json").exists()


def test_a_chunk_without_usable_samples_is_an_empty_shard(tmp_path):
    writer = StoreWriter(tmp_path, BLOCKS)
    writer.write_shard(0, UIDS[:0], losses()[:0], [])
    write_some(writer, gradients(), (1,))
    writer.write_targets(NAMES, gradients(2))
    writer.finish()
    store = GradientStore.open(tmp_path)
    assert store.uids.tolist() == [22, 31, 5] and len(list(store.batches())) == 1
    assert score_store(store, [DataInf()])[2].shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bfloat16"}, 'dtype: "float32" there, "bfloat16" now'),
        ({"projection": Projection(2, 2)}, "projection: null there"),
        ({"about": {"model": "m", "pool": [1]}}, r"about pool: \[1, 2\] there, \[1\] now"),
        ({"blocks": BLOCKS[:2]}, "3 blocks there, 2 now"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_store_of_other_settings_is_refused(change, words, finished, tmp_path):
    same = {"blocks": BLOCKS, "dtype": "float32", "projection": None, "about": {"model": "m", "pool": [1, 2]}}
    if finished:
        written(tmp_path)
    else:
        StoreWriter(tmp_path, **same)
    StoreWriter(tmp_path, **same)
    with pytest.raises(ValueError, match=rf"holds a gradient store of other settings \({words}"):
        StoreWriter(tmp_path, **{**same, **change})


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no gradient store"):
        GradientStore.open(tmp_path)
    (tmp_path / "scores.parquet").write_text("")
    with pytest.raises(ValueError, match="exists but is not a gradient store"):
        StoreWriter(tmp_path, BLOCKS)
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"store.json: not a gradient store of format 1"):
        GradientStore.open(tmp_path)


def test_other_samples_in_a_shard_are_refused(tmp_path):
    writer = StoreWriter(tmp_path, BLOCKS)
    write_some(writer, gradients(), (0,))
    with pytest.raises(ValueError, match=r"00000000.safetensors: holds other samples"):
        writer.write_shard(0, UIDS[:2], losses()[:2], shard_batches(gradients(), 0, [2]))


@pytest.mark.parametrize(
    ("uids", "batch", "words"),
    [
        (UIDS[:3], gradients(2), "3 uids for gradients of 2 samples"),
        (torch.tensor([4, 4]), gradients(2), "twice in one shard"),
        (UIDS[:2], {"layer.bias": gradients(2)["layer.bias"]}, "head.weight, layer.weight only on one side"),
        (UIDS[:2], gradients(2) | {"layer.bias": torch.ones(2, 1, 5)}, r"layer.bias: gradients have shape \[2, 1, 5\]"),
    ],
)
def test_gradients_that_do_not_fit_are_refused(uids, batch, words, tmp_path):
    factors = {name: Factor.from_dense(g) for name, g in batch.items()}
    with pytest.raises(ValueError, match=words):
        StoreWriter(tmp_path, BLOCKS).write_shard(0, uids, torch.zeros(len(uids)), factors)


def test_packed_gradients_are_written_as_factors_are(tmp_path):
    written(tmp_path / "a", dtype="bfloat16", projection=Projection(2, 4))
    writer = StoreWriter(tmp_path / "b", BLOCKS, "bfloat16", Projection(2, 4), {"model": "m", "pool": [1, 2]})
    factors = shard_batches(gradients(), 0, [2, 2])
    packed = [writer.pack(uids, batch) for uids, batch in zip(UIDS.split(2), factors, strict=False)]
    writer.write_shard(0, UIDS[:4], losses()[:4], packed)
    name = "shards/00000000.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(ValueError, match="packed gradients are not of this store's"):
        StoreWriter(tmp_path / "c", BLOCKS).write_shard(0, UIDS[:4], losses()[:4], packed)


# damage


def test_a_missing_shard_is_named(tmp_path):
    written(tmp_path)
    (tmp_path / "shards" / "00000001.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"00000001.safetensors: no such file \(1 of the gradient store's 3 files"
    ):
        GradientStore.open(tmp_path)
    assert torch.equal(written(tmp_path).uids, UIDS)


@pytest.mark.parametrize("name", ["shards/00000001.safetensors", "targets.safetensors"])
@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_damaged_file_is_named(name, left, tmp_path):
    written(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{name}: damaged .*; delete it and run the command that writes the store"):
        GradientStore.open(tmp_path)


def test_a_shard_of_another_store_is_refused(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", projection=Projection(9, 9, seed=4))  # which leaves all blocks as they are
    name = "shards/00000001.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(ValueError, match=f"{name}: belongs to a gradient store of other settings"):
        GradientStore.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "sizes", "words"),
    [
        ({"layer.bias": torch.zeros(4, 1, 6, dtype=torch.float16)}, [2, 2], "layer.bias is .*F16.*, expected .*F32"),
        ({"layer.bias": torch.zeros(4, 1, 5)}, [2, 2], r"layer.bias is .*5\]\), expected .*6\]\)"),
        ({"other": torch.zeros(1)}, [2, 2], "other is .*, expected nothing"),
        ({}, [2, 1], "batches of 3 samples, 4 uids"),
        ({}, None, "KeyError"),
    ],
)
def test_a_shard_whose_header_differs_is_refused(change, sizes, words, tmp_path):
    store, path = written(tmp_path), tmp_path / "shards" / "00000000.safetensors"
    about = {"batches": sizes} if sizes else {}
    save_file(load_file(path) | change, path, metadata=store_format.to_header(store.settings, about))
    with pytest.raises(ValueError, match=rf"00000000.safetensors: damaged \(.*{words}"):
        GradientStore.open(tmp_path)


def test_a_shard_of_fewer_samples_than_were_written_is_refused(tmp_path):
    store, path = written(tmp_path), tmp_path / "shards" / "00000000.safetensors"
    fewer = {name: tensor[:2].clone() for name, tensor in load_file(path).items()}
    save_file(fewer, path, metadata=store_format.to_header(store.settings, {"batches": [2]}))
    with pytest.raises(ValueError, match="00000000.safetensors: has 2 samples, store.json says 4"):
        GradientStore.open(tmp_path)


# projection


def random_factors(dtype=torch.float64, n=3, t=4, rows=7, cols=11):
    generator = torch.Generator().manual_seed(2)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    outer = OuterFactor(normal(n, t, rows), normal(n, t, cols))
    lookup = LookupFactor(torch.randint(rows, (n, t), generator=generator), normal(n, t, cols), rows)
    return {"outer": outer, "lookup": lookup, "sum": SumFactor([outer, lookup]), "dense": DenseFactor(outer.dense())}


@pytest.mark.parametrize("kind", ["outer", "lookup", "sum", "dense"])
@pytest.mark.parametrize("kept", [(3, 5), (3, 99), (99, 5), (99, 99), (7, 11)])
def test_projected_factors_are_factors_of_projected_gradients(kind, kept, monkeypatch):
    factor, block, projection = random_factors()[kind], Block("w", "", 7, 11), Projection(*kept)
    matrices = projection.matrices(block)
    a = torch.eye(7) if matrices.rows is None else matrices.rows
    b = torch.eye(11) if matrices.cols is None else matrices.cols
    expected = torch.einsum("kr,nrc,lc->nkl", a.double(), factor.dense(), b.double())
    monkeypatch.setattr("vlmsel.gradients.factors.LIMIT", 100)  # formed a sample at a time
    found = projected(factor, matrices)
    assert (found.rows, found.cols) == projection.shape(7, 11) == (min(7, kept[0]), min(11, kept[1]))
    torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(project(factor.dense(), matrices.to(factor.values)), expected, rtol=1e-12, atol=1e-12)
    if kept[0] >= 7 and kept[1] >= 11:
        assert found is factor


def test_factors_without_samples_or_tokens_are_projected():
    matrices = Projection(3, 5).matrices(Block("w", "", 7, 11))
    for factor in (OuterFactor(torch.zeros(2, 0, 7), torch.zeros(2, 0, 11)), DenseFactor(torch.zeros(0, 7, 11))):
        assert projected(factor, matrices).dense().shape == (factor.samples, 3, 5)


@pytest.mark.parametrize("kept", [(4, 6), (4, 99), (99, 6)])
def test_projection_keeps_inner_products_on_average(kept):
    """The mean over 4000 seeds lies within four of its standard errors, and these are small."""
    g, h = random_factors()["dense"].dense()[:2]
    block, found = Block("w", "", 7, 11), []
    for seed in range(4000):
        matrices = Projection(*kept, seed=seed).matrices(block).to(g)
        small = project(torch.stack([g, h]), matrices)
        found.append([(small[0] * small[1]).sum(), (small[0] * small[0]).sum()])
    found = torch.tensor(found)
    for values, exact in zip(found.T, [(g * h).sum(), (g * g).sum()], strict=True):
        error = values.std().item() / len(values) ** 0.5
        assert abs(values.mean().item() - exact.item()) < 4 * error < 0.1 * (g * g).sum().item()


def test_matrices_depend_on_seed_and_name_alone():
    block, projection = Block("w", "m", 70, 110), Projection(3, 5, seed=1)
    torch.manual_seed(5)
    first, state = projection.matrices(block), torch.get_rng_state()
    again = Projection(3, 9, seed=1).matrices(replace(block, module="other"))
    assert torch.equal(first.rows, again.rows) and torch.equal(torch.get_rng_state(), state)
    for other in (replace(projection, seed=2).matrices(block), projection.matrices(replace(block, name="v"))):
        assert not torch.isclose(first.rows, other.rows).any() and not torch.isclose(first.cols, other.cols).any()
    square = Projection(3, 3).matrices(Block("w", "", 8, 8))
    assert not torch.isclose(square.rows, square.cols).any()
    assert first.rows.dtype == torch.float32 and first.cols.std().item() == pytest.approx(5**-0.5, rel=0.1)


def test_matrices_stay_what_they_were():
    """Numbers of a fixed seed: stores written elsewhere and resumed here have to agree."""
    matrices = Projection(2, 2, seed=0).matrices(Block("w", "", 3, 3))
    torch.testing.assert_close(matrices.rows, torch.tensor(ROWS), rtol=0, atol=1e-7)


ROWS = [[0.4702086, 1.0963106, -0.1782979], [0.0586637, 0.2415517, 0.1932937]]


@pytest.mark.parametrize("sizes", [(0, 4), (4, -1), (2.5, 4)])
def test_sizes_of_a_projection_are_checked(sizes):
    with pytest.raises(ValueError, match="must be a whole number above 0"):
        Projection(*sizes)


def test_a_projected_store_holds_projected_gradients_and_targets(tmp_path):
    projection = Projection(2, 4, seed=9)
    store = written(tmp_path, projection=projection)
    assert [(b.rows, b.cols) for b in store.blocks] == [(2, 4), (1, 4), (2, 4)]
    assert GradientStore.open(tmp_path).settings.projection == projection
    for block in BLOCKS:
        matrices = projection.matrices(block)
        for found, given in (
            (store.gradients(block.name), gradients()[block.name]),
            (store.target_gradients()[block.name], gradients(2, seed=1)[block.name]),
        ):
            torch.testing.assert_close(found, project(given, matrices))


# scores


def by_arrays(scorers, given, targets, uids):
    rows = [s.draw(uids, NAMES) if not s.uses_gradients else score_gradients(given, targets, s) for s in scorers]
    return torch.cat(rows)


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda s: s.name)
@pytest.mark.parametrize("projection", [None, Projection(2, 4)])
def test_scores_are_those_of_the_same_arrays(scorer, projection, tmp_path):
    store = written(tmp_path, projection=projection)
    given = {block.name: store.gradients(block.name) for block in store.blocks}
    uids, names, scores = score_store(store, [scorer])
    assert torch.equal(uids, UIDS) and names == ((scorer.name, "one"), (scorer.name, "two"))
    tolerance = 1e-5 if scorer.name == "HyperINF" else 1e-6  # its float32 inverse multiplies rounding
    assert_near(scores, by_arrays([scorer], given, store.target_gradients(), UIDS), tolerance)


def test_all_scorers_run_at_once_and_targets_are_chosen(tmp_path):
    store, details = written(tmp_path), {}
    uids, names, scores = score_store(store, [SCORERS[-1], *SCORERS[:-1]], details=details)
    assert [name for name, _ in names[::2]] == [scorer.name for scorer in SCORERS]
    assert_near(scores, by_arrays(SCORERS, gradients(), gradients(2, seed=1), uids), 1e-5)
    assert details["DataInf"]["layer.bias"]["samples"] == 7 and set(details) == {s.name for s in SCORERS[:-1]}
    _, two, part = score_store(store, SCORERS, targets=["two"])
    assert two == tuple(pair for pair in names if pair[1] == "two")
    assert_near(part, scores[1::2], 1e-5)


def test_leaving_samples_out_is_scoring_without_them(tmp_path):
    store, rows = written(tmp_path), [0, 2, 3, 5]
    uids, _, scores = score_store(store, SCORERS, keep=set(UIDS[rows].tolist()))
    assert uids.tolist() == UIDS[rows].tolist()
    part = {name: g[rows] for name, g in gradients().items()}
    assert_near(scores, by_arrays(SCORERS, part, gradients(2, seed=1), uids), 1e-5)


def test_curvature_of_some_samples_scores_others(tmp_path):
    store, fit, keep, scale = written(tmp_path), [0, 4, 5, 6], [1, 2, 5], [1, 3]
    given, targets = gradients(), gradients(2, seed=1)
    for scorer in (s for s in SCORERS if s.uses_gradients):
        expected = torch.zeros(2, len(keep))
        for name, g in given.items():
            accumulator = scorer.accumulator(targets[name], float(g[scale].square().mean()))
            accumulator.update(DenseFactor(g[fit]))
            expected -= torch.einsum("trc,nrc->tn", accumulator.solve(), g[keep])
        uids, _, scores = score_store(
            store, [scorer], fit=UIDS[fit].tolist(), keep=UIDS[keep].tolist(), scale=UIDS[scale].tolist()
        )
        assert uids.tolist() == UIDS[keep].tolist()
        assert_near(scores, expected, 1e-5)


def test_a_stochastic_recursion_sees_the_batches_that_were_written(tmp_path):
    store, scorer, given = written(tmp_path), LiSSA(batch="stream"), gradients()
    rows = [0, 1, 2, 5]  # of the batches 2, 2 and 3 there remain 2, 1 and 1
    expected = torch.zeros(2, len(rows))
    for name, g in given.items():
        accumulator = scorer.accumulator(gradients(2, seed=1)[name], float(g[rows].square().mean()))
        for part in ([0, 1], [2], [5]):
            accumulator.update(DenseFactor(g[part]))
        expected -= torch.einsum("trc,nrc->tn", accumulator.solve(), g[rows])
    assert_near(score_store(store, [scorer], keep=UIDS[rows].tolist())[2], expected, 1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_scores_in_half_precision_are_near(dtype, tolerance, tmp_path):
    scorers = [TracIn(), DataInf(), HyperINF(damping=10.0)]
    found = score_store(written(tmp_path, dtype=dtype), scorers)[2]
    expected = by_arrays(scorers, gradients(), gradients(2, seed=1), UIDS)
    assert_near(found, expected, tolerance)
    assert (found - expected).abs().max() > 0


def test_scorers_that_would_keep_too_much_are_refused(tmp_path, monkeypatch):
    store = written(tmp_path)
    needs = 2 * 4 * 7 * 30  # two scorers, seven samples, the largest block
    monkeypatch.setattr(store_scores, "KEPT_BYTES", needs)
    score_store(store, [Exact(), LiSSA()])
    monkeypatch.setattr(store_scores, "KEPT_BYTES", needs - 1)
    with pytest.raises(
        ValueError, match=r"Exact, LiSSA would keep every fit sample's .* layer.weight \[6, 5\]; use fit_s"
    ):
        score_store(store, [Exact(), LiSSA()])
    score_store(store, [Exact(), LiSSA()], fit=UIDS[:6].tolist())
    score_store(store, [Exact(), DataInf()])


def test_bad_questions_to_a_store_are_refused(tmp_path):
    store = written(tmp_path)
    with pytest.raises(ValueError, match="2 of 3 samples of fit are not in the gradient store, the first: 4"):
        score_store(store, [TracIn()], fit=[40, 6, 4])
    with pytest.raises(ValueError, match="1 of 1 samples of keep are not"):
        list(store.batches([99]))
    with pytest.raises(ValueError, match="no target 'three'; the gradient store has one, two"):
        score_store(store, [TracIn()], targets=["one", "three"])
    with pytest.raises(ValueError, match="no sample to fit curvature"):
        score_store(store, [TracIn()], fit=[])
    with pytest.raises(ValueError, match="no block 'layer' in the gradient store; it has"):
        store.gradients("layer")


def test_scores_that_leave_the_range_are_reported(tmp_path):
    given = gradients()
    given["layer.bias"][4], given["layer.weight"][4] = 6e18, 3e18
    store = written(tmp_path, given)
    StoreWriter(tmp_path, BLOCKS, about=store.about).write_targets(["far"], {name: g[4:5] for name, g in given.items()})
    store = GradientStore.open(tmp_path)
    with pytest.raises(ValueError, match="scores of 1 of 7 samples are not finite, the first: 22; leave them out"):
        score_store(store, [TracIn()])


def store_pool(model, items, targets, blocks, folder):
    """Write a store from batched backwards, as a pass over a pool does."""
    writer = StoreWriter(folder, blocks)
    for number, start in enumerate(range(0, len(items), 3)):
        batch = COLLATE(items[start : start + 3])
        with capture(model, blocks, len(batch.uids), row_samples(model, batch)) as captured:
            found = sample_losses(model, batch)
            found.sum().backward()
        writer.write_shard(number, batch.uids, found, captured.factors())
    writer.write_targets(["one"], targets)
    writer.finish()
    return GradientStore.open(folder)


@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
def test_a_pool_stored_in_batches_scores_as_a_loop_of_single_samples(spec, tmp_path):
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    items, blocks = tiny_items(dtype=torch.float64), select_blocks(model, spec)
    means = loop_means(model, {"one": tiny_items([1, 2, 0], torch.float64, seed=1)}, blocks)
    store, exact = store_pool(model, items, means, blocks, tmp_path), loop(model, items, blocks)
    assert store.uids.tolist() == [item.uid for item in items]
    # a damping of 10, for inverses at 0.1 multiply the rounding of what was stored by up to their condition number
    for scorer in (TracIn(), *(make(damping=10.0) for make in (DataInf, LiSSA, Exact)), HYPERINF):
        found = score_store(store, [scorer])[2]
        assert_near(found, score_gradients(exact, means, scorer).float(), 1e-6)


# size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("projection", [None, Projection(2, 4)])
def test_the_size_is_known_before(dtype, projection, tmp_path):
    written(tmp_path, dtype=dtype, projection=projection)
    found = sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())
    assert 0 < found - store_bytes(len(UIDS), BLOCKS, dtype, projection) < 2 * 1000


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    needs = store_bytes(10**9, BLOCKS)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(store_format.shutil, "disk_usage", lambda path: usage(needs - 1))
    folder = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match=r"takes 264 GB more and the disk has 264 GB free; use a projection"):
        StoreWriter(folder, BLOCKS, samples=10**9)
    assert not folder.exists()
    monkeypatch.setattr(store_format.shutil, "disk_usage", lambda path: usage(needs))
    StoreWriter(folder, BLOCKS, samples=10**9)
    assert store_writer.UNFINISHED in {path.name for path in folder.iterdir()}


def test_what_is_there_needs_no_more_room(tmp_path, monkeypatch):
    written(tmp_path)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(store_format.shutil, "disk_usage", lambda path: usage(0))
    StoreWriter(tmp_path, BLOCKS, about={"model": "m", "pool": [1, 2]}, samples=len(UIDS))
