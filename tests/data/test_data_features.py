"""Folders of features: what was written is read, row by row; what changed, is damaged or of another kind is told."""

import json
import os
import pickle
import tracemalloc
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from vlmsel import runs
from vlmsel.data import features as features_module
from vlmsel.data.feature_files import DTYPES, FeatureSpec, Picture, stamp, write_shard
from vlmsel.data.features import FeatureCache, require_room, writing

SPEC = FeatureSpec("abc", -2, 16, "pad", (0.5,) * 3, (0.25,) * 3, 4, 6, "float32", "float32")


@pytest.fixture
def files(tmp_path):
    """Five files with different bytes."""
    (tmp_path / "images").mkdir()
    paths = {f"{i}.png": tmp_path / "images" / f"{i}.png" for i in range(5)}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def picture(path):
    return Picture(str(path), stamp(path), runs.file_hash(path))


def numbers(count, spec=SPEC, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, spec.patches, spec.width, generator=generator).to(DTYPES[spec.dtype])


def fill(folder, paths, spec=SPEC, sizes=(2, 3)):
    """Write all files' features in shards of these sizes; return the features."""
    features, pictures = numbers(len(paths), spec), [picture(path) for path in paths.values()]
    with writing(folder, spec) as cache:
        start = 0
        for size in sizes:
            cache.append(pictures[start : start + size], features[start : start + size])
            start += size
    return features


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_rows_come_back_bit_for_bit(tmp_path, files, dtype):
    spec = replace(SPEC, dtype=dtype)
    features = fill(tmp_path / "f", files, spec)
    reader = FeatureCache(tmp_path / "f", spec).reader(files)
    assert len(list((tmp_path / "f/shards").iterdir())) == 2
    for row, name in enumerate(files):
        found = reader(name)
        assert found.dtype == DTYPES[dtype] and torch.equal(found, features[row])


class Rows:
    """A data set of features."""

    def __init__(self, reader, names):
        self.reader, self.names = reader, names

    def __len__(self):
        return len(self.names)

    def __getitem__(self, position):
        return self.reader(self.names[position])


def test_readers_go_to_worker_processes(tmp_path, files):
    features = fill(tmp_path / "f", files)
    reader = pickle.loads(pickle.dumps(FeatureCache(tmp_path / "f", SPEC).reader(files)))
    loader = DataLoader(Rows(reader, list(files)), batch_size=5, num_workers=2)
    assert torch.equal(next(iter(loader)), features)


def test_reading_a_row_of_a_large_shard_needs_the_memory_of_a_row(tmp_path, files):
    spec = replace(SPEC, patches=512, width=1024)  # 2 MB
    fill(tmp_path / "f", files, spec, sizes=())
    path, count = tmp_path / "f/shards/000000.safetensors", 1000
    path.parent.mkdir()
    named = json.dumps([["no such file", [0, 0, 0], str(i)] for i in range(count - 1)])
    last = picture(files["0.png"])
    named = json.dumps([*json.loads(named), [last.path, last.stamp, last.digest]])
    shape = {"dtype": "F32", "shape": [count, 512, 1024], "data_offsets": [0, count * spec.row_bytes]}
    header = json.dumps({"__metadata__": {"pictures": named}, "features": shape}).encode()
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count * spec.row_bytes)  # 2 GB of zeros that take no room
        file.seek(-4, os.SEEK_END)
        file.write(b"\x00\x00\x80\x3f")
    tracemalloc.start()
    found = FeatureCache(tmp_path / "f", spec).reader(files)("0.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found[-1, -1] == 1.0 and found.sum() == 1.0
    assert spec.row_bytes <= peak < 2 * spec.row_bytes


def test_a_changed_file_has_no_features_even_when_length_and_time_are_the_same(tmp_path, files):
    fill(tmp_path / "f", files)
    path = files["1.png"]
    before = os.stat(path)
    path.write_text("X.png")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp(path)[:2] == (before.st_size, before.st_mtime_ns)
    files["3.png"].unlink()
    reader = FeatureCache(tmp_path / "f", SPEC).reader(files)
    assert sorted(reader.places) == ["0.png", "2.png", "4.png"]


def test_a_touched_file_is_recorded_and_a_later_change_counts_again(tmp_path, files):
    features, path = fill(tmp_path / "f", files), files["1.png"]
    os.utime(path, ns=(1, 1))
    with writing(tmp_path / "f", SPEC) as cache:
        assert cache.find(path) is None
        cache.remember([picture(path)])
        assert torch.equal(cache.reader(files)("1.png"), features[1])
    assert torch.equal(FeatureCache(tmp_path / "f", SPEC).reader(files)("1.png"), features[1])
    path.write_text("other")
    with writing(tmp_path / "f", SPEC) as cache:
        assert cache.find(path) is None
        cache.append([picture(path)], features[:1] + 1)
    assert torch.equal(FeatureCache(tmp_path / "f", SPEC).reader(files)("1.png"), features[0] + 1)


def test_what_a_killed_writer_left_is_no_shard_and_in_nobodys_way(tmp_path, files):
    features = fill(tmp_path / "f", dict(list(files.items())[:2]), sizes=(2,))
    (tmp_path / "f/shards/000001.safetensors.part").write_bytes(b"half")
    cache = FeatureCache(tmp_path / "f", SPEC)
    assert sorted(cache.reader(files).places) == ["0.png", "1.png"]
    with writing(tmp_path / "f", SPEC) as cache:
        cache.append([picture(files["2.png"])], features[:1])
    names = sorted(path.name for path in (tmp_path / "f/shards").iterdir())
    assert names == ["000000.safetensors", "000001.safetensors"]


def test_a_reader_is_not_harmed_by_a_writer(tmp_path, files):
    features = fill(tmp_path / "f", dict(list(files.items())[:2]), sizes=(2,))
    reader = FeatureCache(tmp_path / "f", SPEC).reader(files)
    with writing(tmp_path / "f", SPEC) as cache:
        assert torch.equal(reader("1.png"), features[1])
        cache.append([picture(files["2.png"])], features[:1])
        assert torch.equal(reader("1.png"), features[1])


def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path, files):
    fill(tmp_path / "f", files)
    with writing(tmp_path / "f", SPEC):
        with pytest.raises(ValueError, match="another process is writing features here"):
            with writing(tmp_path / "f", SPEC):
                pass
        assert len(FeatureCache(tmp_path / "f", SPEC).rows) == 5
    with writing(tmp_path / "f", SPEC):
        pass


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"\x08" + bytes(7) + b"{}{}{}{}" + bytes(100))


def header_of_another(path):
    write_shard(path, [], torch.zeros(0, 4, 7))


@pytest.mark.parametrize("damage", [cut, empty, garbage, header_of_another])
def test_a_damaged_shard_is_named(tmp_path, files, damage):
    fill(tmp_path / "f", files)
    damage(tmp_path / "f/shards/000001.safetensors")
    with pytest.raises(ValueError, match="000001.safetensors is damaged or was cut off; delete it") as caught:
        FeatureCache(tmp_path / "f", SPEC)
    assert "\n" not in str(caught.value)
    (tmp_path / "f/shards/000001.safetensors").unlink()
    assert sorted(FeatureCache(tmp_path / "f", SPEC).reader(files).places) == ["0.png", "1.png"]


def test_a_shard_that_is_cut_off_or_deleted_while_it_is_read_is_named(tmp_path, files):
    fill(tmp_path / "f", files)
    reader = FeatureCache(tmp_path / "f", SPEC).reader(files)
    cut(tmp_path / "f/shards/000001.safetensors")
    with pytest.raises(ValueError, match="000001.safetensors is damaged"):
        reader("4.png")
    (tmp_path / "f/shards/000000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="000000.safetensors"):
        reader("0.png")


@pytest.mark.parametrize("content", ["{", "[1]", "[[1, [2], 3]]", "3"])
def test_damaged_stamps_are_named(tmp_path, files, content):
    fill(tmp_path / "f", files)
    (tmp_path / "f/stamps.json").write_text(content)
    with pytest.raises(ValueError, match="stamps.json is damaged; delete it"):
        FeatureCache(tmp_path / "f", SPEC)


@pytest.mark.parametrize(
    "change",
    [
        {"tower": "xyz"},
        {"layer": -1},
        {"mode": "crop"},
        {"size": 32},
        {"std": (0.5,) * 3},
        {"computed": "bfloat16"},
        {"dtype": "float16"},
    ],
)
def test_features_of_another_kind_are_refused(tmp_path, files, change):
    fill(tmp_path / "f", files)
    for use in (FeatureCache, lambda folder, spec: writing(folder, spec).__enter__()):
        with pytest.raises(ValueError, match=f"features of another kind \\({next(iter(change))} .* there, .* now\\)"):
            use(tmp_path / "f", replace(SPEC, **change))


def test_a_folder_of_other_things_is_refused_and_stays_as_it_is(tmp_path, files):
    for folder in (tmp_path / "images", files["0.png"]):
        with pytest.raises(ValueError, match="is no folder of features"):
            FeatureCache(folder, SPEC)
    with pytest.raises(ValueError, match="is no folder of features"), writing(tmp_path / "images", SPEC):
        pass
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == list(files)
    (tmp_path / "f").mkdir()
    (tmp_path / "f/features.json").write_text("[]")
    with pytest.raises(ValueError, match="features.json: does not describe features"):
        FeatureCache(tmp_path / "f", SPEC)


def test_an_absent_folder_holds_nothing_and_is_not_made_by_looking(tmp_path, files):
    assert FeatureCache(tmp_path / "f", SPEC).reader(files).places == {}
    assert not (tmp_path / "f").exists()


def test_too_little_room_is_refused_with_numbers(tmp_path, monkeypatch):
    spec = replace(SPEC, patches=576, width=1024)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(features_module.shutil, "disk_usage", lambda folder: usage(10**9))
    require_room(tmp_path, spec, 423)
    with pytest.raises(ValueError, match=r"424 pictures need 1\.0 GB \(576 patches x 1024 x 4 bytes each\), 1\.0 GB"):
        require_room(tmp_path, spec, 424)
    with pytest.raises(ValueError, match=r"or store bfloat16 \(500\.2 MB\)"):
        require_room(tmp_path, spec, 424)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="float16, bfloat16, float32, float64; got 'int8'"):
        replace(SPEC, dtype="int8")
