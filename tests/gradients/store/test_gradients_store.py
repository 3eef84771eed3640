"""Stored gradients against those that were given; stores that are unfinished, of other settings or damaged."""

import json
import math
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file
from stored import (
    BLOCKS,
    NAMES,
    ORIGIN,
    RECORDS,
    SAME,
    UIDS,
    bytes_of,
    losses,
    opened,
    random_gradients,
    stored_gradients,
    write_some,
    written,
)

from vlmsel import runs as vlmsel_runs
from vlmsel.gradients import DenseFactor, Factor
from vlmsel.gradients.projection import Projection, projected
from vlmsel.gradients.store.format import StoreSettings, save_tensors
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.writer import StoreWriter

FIRST, LAST = "shards/00000000.safetensors", "shards/00000001.safetensors"


def test_a_store_comes_back_as_it_was(tmp_path):
    store, given, targets = written(tmp_path), random_gradients(), random_gradients(2, seed=1)
    assert torch.equal(store.uids, UIDS) and torch.equal(store.losses, losses()) and store.records == RECORDS
    assert store.targets == NAMES and dict(store.about) == {"model": "m", "pool": [1, 2]}
    assert store.blocks == BLOCKS and [shard.sizes for shard in store.shards] == [[2, 2], [3]]
    for name in given:
        assert torch.equal(stored_gradients(store, name), given[name])
        assert torch.equal(store.target_gradients()[name], targets[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "store.json", "targets.safetensors"]


def test_a_part_of_a_shard_comes_back(tmp_path):
    shard = written(tmp_path).shards[0]
    for name, given in random_gradients().items():
        assert torch.equal(shard.factor(name, torch.tensor([True, False, False, True])).dense(), given[[0, 3]])


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("bfloat16", 8), ("float16", 11)])
def test_entries_are_rounded_once_to_nearest(dtype, bits, tmp_path):
    given = random_gradients(dtype=torch.float64)
    store = written(tmp_path, given, dtype)
    for name, exact in given.items():
        found = stored_gradients(store, name)
        assert found.dtype == torch.float32
        assert ((found - exact).abs() <= 2.0**-bits * exact.abs()).all()
        assert ((found - exact).abs() > 2.0 ** -(bits + 2) * exact.abs()).any()


def test_gradients_formed_in_pieces_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("vlmsel.gradients.factors.LIMIT", 40)  # a sample of the largest block at a time
    store, given = written(tmp_path / "a"), random_gradients()
    assert all(torch.equal(stored_gradients(store, name), g) for name, g in given.items())
    given["head.weight"][3, 0, 0] = math.nan
    with pytest.raises(ValueError, match="the gradient of sample 8 on block head.weight"):
        written(tmp_path / "b", given)


def test_losses_and_uids_stay_exact_in_half_precision(tmp_path):
    store = written(tmp_path, dtype="float16")
    assert torch.equal(store.uids, UIDS) and torch.equal(store.losses, losses())


def test_a_sample_out_of_range_is_named(tmp_path):
    given = random_gradients()
    given["head.weight"][5, 1, 2] = 1e5
    words = "sample 31 on block head.weight leaves the range of float16; use dtype bfloat16 or float32"
    with pytest.raises(ValueError, match=words):
        written(tmp_path / "a", given, "float16")
    assert not list((tmp_path / "a").rglob("*.part"))
    found = stored_gradients(written(tmp_path / "b", given, "bfloat16"), "head.weight")[5, 1, 2].item()
    assert found == pytest.approx(1e5, 0.01)


def test_float16_refuses_gradients_that_it_would_lose(tmp_path):
    tiny = {name: 1e-7 * g for name, g in random_gradients().items()}
    with pytest.raises(ValueError, match="block layer.weight: gradients are too small for float16, .* % of their norm"):
        written(tmp_path / "a", tiny, "float16")
    mixed = random_gradients()
    mixed["layer.weight"][2] *= 1e-7  # one sample learnt by heart among others
    assert stored_gradients(written(tmp_path / "b", mixed, "float16"), "layer.weight")[2].abs().max() < 1e-6


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_gradients_that_are_not_finite_are_refused(value, tmp_path):
    """1e30 is in range, but its square is not: the streamed passes leave such a sample out as well."""
    given = random_gradients()
    given["layer.bias"][1] = value
    with pytest.raises(ValueError, match="gradient of sample 3 on block layer.bias is not finite; leave the sample"):
        written(tmp_path, given)
    with pytest.raises(ValueError, match="target two: its gradient on block layer.bias is not finite; leave the"):
        opened(tmp_path).write_targets(NAMES, {name: g[[0, 1]] for name, g in given.items()}, ORIGIN)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["store.json"]


@pytest.mark.parametrize("loss", [1.5, math.inf, math.nan])
def test_samples_left_out_are_listed_with_their_losses(loss, tmp_path):
    writer = opened(tmp_path)
    write_some(writer, random_gradients(), (1,))
    writer.write_shard(0, [], {40: ("the gradient is not finite", loss)})
    writer.write_targets(NAMES, random_gradients(2), ORIGIN)
    writer.finish(range(2))
    store = GradientStore.open(tmp_path)
    assert store.uids.tolist() == [22, 31, 5]
    assert repr(store.left_out) == repr({40: ("the gradient is not finite", loss)})


def test_a_projected_store_holds_projected_gradients_and_targets(tmp_path):
    projection = Projection(2, 4, seed=9)
    store = written(tmp_path, projection=projection)
    assert [(b.rows, b.cols) for b in store.blocks] == [(2, 4), (1, 4), (2, 4)]
    assert store.settings == StoreSettings(**{**SAME, "projection": projection})
    for block in BLOCKS:
        matrices = projection.matrices(block)
        for found, given in (
            (stored_gradients(store, block.name), random_gradients()[block.name]),
            (store.target_gradients()[block.name], random_gradients(2, seed=1)[block.name]),
        ):
            torch.testing.assert_close(found, projected(DenseFactor(given), matrices).dense())


# going on


def test_a_killed_writer_goes_on(tmp_path):
    expected = written(tmp_path / "whole")
    half = tmp_path / "half"
    write_some(opened(half), random_gradients(), (0,))
    (half / "shards" / "00000001.safetensors.vlmsel.here.123.part").write_bytes(b"half a shard")
    stamp = (half / FIRST).stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="half: unfinished gradient store"):
        GradientStore.open(half)
    writer = opened(half)
    assert writer.has_shard(0) and not writer.has_shard(1) and not writer.has_targets(NAMES, ORIGIN)
    store = written(half)
    assert (half / FIRST).stat().st_mtime_ns == stamp
    assert bytes_of(half) == bytes_of(tmp_path / "whole") and torch.equal(store.uids, expected.uids)


def test_a_writer_killed_at_once_leaves_a_folder_that_may_be_used(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "store.json.vlmsel.here.12.part").write_text("{")
    assert len(written(tmp_path).uids) == 7


def test_several_writers_share_the_shards(tmp_path):
    written(tmp_path / "alone")
    writers = [opened(tmp_path / "two") for _ in range(2)]
    for number, writer in enumerate(writers):
        write_some(writer, random_gradients(), (number,))
    writers[0].write_targets(NAMES, random_gradients(2, seed=1), ORIGIN)
    writers[0].finish(range(2))
    assert bytes_of(tmp_path / "two") == bytes_of(tmp_path / "alone")


def test_targets_may_be_replaced_in_a_finished_store(tmp_path):
    written(tmp_path)
    writer = opened(tmp_path)
    assert writer.has_targets(NAMES, ORIGIN)
    assert not writer.has_targets(["one"], ORIGIN) and not writer.has_targets(NAMES, {"one": "another file"})
    writer.write_targets(["three"], random_gradients(1, seed=5), ORIGIN)
    store = GradientStore.open(tmp_path)
    assert store.targets == ("three",)
    assert torch.equal(store.target_gradients()["layer.bias"], random_gradients(1, seed=5)["layer.bias"])


def test_a_store_is_finished_only_when_all_is_there(tmp_path):
    writer = opened(tmp_path)
    write_some(writer, random_gradients(), (0,))
    with pytest.raises(FileNotFoundError, match=r"00000001.safetensors: no such file \(2 of the gradient store's 3"):
        writer.finish(range(2))
    writer.write_targets(NAMES, random_gradients(2), ORIGIN)
    factors = {name: Factor.from_dense(g[:1]) for name, g in random_gradients().items()}
    writer.write_shard(3, [writer.packer.pack(UIDS[:1], losses()[:1], factors)], {})
    with pytest.raises(ValueError, match="1 shards were written by a run with other batches, the first: 00000000"):
        writer.finish([3])
    with pytest.raises(ValueError, match="sample 40 is there twice"):
        writer.finish([0, 3])
    with pytest.raises(FileNotFoundError, match="unfinished gradient store"):
        GradientStore.open(tmp_path)


def test_a_store_without_samples_is_refused(tmp_path):
    writer = opened(tmp_path)
    writer.write_shard(0, [], {})
    writer.write_targets(NAMES, random_gradients(2), ORIGIN)
    with pytest.raises(ValueError, match="no sample is there; delete the store and write it again"):
        writer.finish([0])


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
    if finished:
        written(tmp_path)
    opened(tmp_path)
    opened(tmp_path)
    with pytest.raises(ValueError, match=rf"holds a gradient store of other settings \({words}"):
        opened(tmp_path, **change)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no gradient store"):
        GradientStore.open(tmp_path)
    (tmp_path / "scores.parquet").write_text("")
    for folder in (tmp_path, tmp_path / "scores.parquet"):
        with pytest.raises(ValueError, match="exists but is not a gradient store"):
            opened(folder)
    (tmp_path / "store.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match=r"store.json: not a gradient store of format 2"):
        GradientStore.open(tmp_path)


# damage


@pytest.mark.parametrize("name", [LAST, "targets.safetensors"])
def test_a_missing_file_is_named(name, tmp_path):
    written(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}: no such file \(1 of the gradient store's 3 files"):
        GradientStore.open(tmp_path)
    assert torch.equal(written(tmp_path).uids, UIDS)


@pytest.mark.parametrize("name", [LAST, "targets.safetensors"])
@pytest.mark.parametrize("left", [0, 20, -1])
def test_a_damaged_file_is_named(name, left, tmp_path):
    written(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=f"{name}: damaged .*; delete it and run the command that writes the store"):
        GradientStore.open(tmp_path)


@pytest.mark.parametrize("text", ["{", json.dumps({"format": 2, "blocks": []})])
def test_damaged_settings_are_named(text, tmp_path):
    written(tmp_path)
    (tmp_path / "store.json").write_text(text)
    for read in (GradientStore.open, opened):
        with pytest.raises(ValueError, match=r"store.json: (not a JSON file|damaged \(KeyError)"):
            read(tmp_path)


def test_a_shard_of_another_store_is_refused(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", projection=Projection(9, 9, seed=4))  # which leaves all blocks as they are
    (tmp_path / "a" / LAST).write_bytes((tmp_path / "b" / LAST).read_bytes())
    with pytest.raises(ValueError, match=f"{LAST}: belongs to a gradient store of other settings"):
        GradientStore.open(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "header", "words"),
    [
        ({"layer.bias": torch.zeros(4, 1, 6, dtype=torch.float16)}, {}, "layer.bias is .*F16.*, expected .*F32"),
        ({"layer.bias": torch.zeros(4, 1, 5)}, {}, r"layer.bias is .*5\]\), expected .*6\]\)"),
        ({"other": torch.zeros(1)}, {}, "other is .*, expected nothing"),
        ({}, {"batches": [2, 1]}, r"uids is \('I64', \[4\]\), expected \('I64', \[3\]\)"),
        ({}, {"batches": None}, "TypeError"),
    ],
)
def test_a_shard_whose_header_differs_is_refused(change, header, words, tmp_path):
    store, path = written(tmp_path), tmp_path / FIRST
    save_tensors(path, store.settings, load_file(path) | change, {"batches": [2, 2], "left_out": [], **header})
    with pytest.raises(ValueError, match=rf"00000000.safetensors: damaged \(.*{words}"):
        GradientStore.open(tmp_path)


# size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("projection", [None, Projection(2, 4)])
def test_the_size_is_known_before(dtype, projection, tmp_path):
    store = written(tmp_path, dtype=dtype, projection=projection)
    found = sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())
    assert 0 < found - len(UIDS) * store.settings.sample_bytes < 2 * 1000


def disk_with(monkeypatch, free):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(vlmsel_runs.shutil, "disk_usage", lambda path: usage(free))


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "a" / "b", StoreSettings(**SAME))
    needs = 10**9 * writer.settings.sample_bytes
    disk_with(monkeypatch, needs - 1)
    with pytest.raises(ValueError, match=r"takes 264 GB more and the disk has 264 GB free; use a projection"):
        writer.begin(10**9, {})
    assert not writer.folder.exists()
    disk_with(monkeypatch, needs)
    writer.begin(10**9, {})
    assert [path.name for path in writer.folder.iterdir()] == ["store.json"]


def test_what_is_there_needs_no_more_room(tmp_path, monkeypatch):
    written(tmp_path)
    disk_with(monkeypatch, 0)
    opened(tmp_path)
