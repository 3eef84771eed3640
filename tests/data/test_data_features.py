"""Folders of features: what was written is read, bit for bit; what changed, is damaged or of another kind is told."""

import os
import pickle
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from vlmsel import runs
from vlmsel.data import features as features_module
from vlmsel.data.features import DTYPES, FeatureFolder, FeatureSpec, feature_path, look, require_room, stamp, writing

SPEC = FeatureSpec("abc", -2, 16, "pad", (0.5,) * 3, (0.25,) * 3, 4, 6, "float32", "float32")


@pytest.fixture
def files(tmp_path):
    """Five files with different bytes."""
    (tmp_path / "images").mkdir()
    paths = {f"{i}.png": tmp_path / "images" / f"{i}.png" for i in range(5)}
    for name, path in paths.items():
        path.write_text(name)
    return paths


def numbers(count, spec=SPEC, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, spec.patches, spec.width, generator=generator).to(DTYPES[spec.dtype])


def fill(folder, paths, spec=SPEC):
    """Write all files' features; return them."""
    features = numbers(len(paths), spec)
    with writing(folder, spec) as kept:
        add(kept, paths.values(), features)
    return features


def add(kept, paths, features):
    kept.remember({str(path): look(path) for path in paths})
    for path, one in zip(paths, features, strict=True):
        kept.save(kept.digest(path), one)


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_features_come_back_bit_for_bit(tmp_path, files, dtype):
    spec = replace(SPEC, dtype=dtype)
    features = fill(tmp_path / "f", files, spec)
    reader = FeatureFolder(tmp_path / "f", spec).reader(files)
    assert len(list((tmp_path / "f").rglob("*.bin"))) == 5
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
    reader = pickle.loads(pickle.dumps(FeatureFolder(tmp_path / "f", SPEC).reader(files)))
    loader = DataLoader(Rows(reader, list(files)), batch_size=5, num_workers=2)
    assert torch.equal(next(iter(loader)), features)


def test_a_changed_file_has_no_features_even_when_length_and_time_are_the_same(tmp_path, files):
    fill(tmp_path / "f", files)
    path = files["1.png"]
    before = os.stat(path)
    path.write_text("X.png")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamp(path)[:2] == [before.st_size, before.st_mtime_ns]
    files["3.png"].unlink()
    reader = FeatureFolder(tmp_path / "f", SPEC).reader(files)
    assert sorted(reader.digests) == ["0.png", "2.png", "4.png"]


def test_a_touched_file_is_recorded_and_a_later_change_counts_again(tmp_path, files):
    features, path = fill(tmp_path / "f", files), files["1.png"]
    os.utime(path, ns=(1, 1))
    with writing(tmp_path / "f", SPEC) as kept:
        assert kept.digest(path) is None
        kept.remember({str(path): look(path)})
        assert torch.equal(kept.reader(files)("1.png"), features[1])
    assert torch.equal(FeatureFolder(tmp_path / "f", SPEC).reader(files)("1.png"), features[1])
    path.write_text("other")
    with writing(tmp_path / "f", SPEC) as kept:
        assert kept.digest(path) is None
        add(kept, [path], features[:1] + 1)
    assert torch.equal(FeatureFolder(tmp_path / "f", SPEC).reader(files)("1.png"), features[0] + 1)


def test_what_a_killed_writer_left_is_deleted_and_in_nobodys_way(tmp_path, files):
    fill(tmp_path / "f", dict(list(files.items())[:2]))
    half = tmp_path / "f/aa/aaaa.bin.vlmsel.here.77.part"
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half")
    assert sorted(FeatureFolder(tmp_path / "f", SPEC).reader(files).digests) == ["0.png", "1.png"]
    with writing(tmp_path / "f", SPEC):
        assert not half.exists()
    empty = tmp_path / "g"
    empty.mkdir()
    (empty / ".lock").touch()
    (empty / "spec.json.vlmsel.here.77.part").touch()
    fill(empty, files)
    assert sorted(FeatureFolder(empty, SPEC).reader(files).digests) == list(files)


HOLD = """
import sys
from vlmsel import runs
from pathlib import Path
runs.lock(Path(sys.argv[1]) / ".lock")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(runs.fcntl is None, reason="no record locks on this system")
def test_a_second_writer_is_refused_and_a_reader_is_not(tmp_path, files):
    fill(tmp_path / "f", files)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "f")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="f: another process is at work in this folder; wait"):
            with writing(tmp_path / "f", SPEC):
                pass
        assert len(FeatureFolder(tmp_path / "f", SPEC).reader(files).digests) == 5
        other.kill()
        other.wait()
    with writing(tmp_path / "f", SPEC):
        pass


@pytest.mark.skipif(runs.fcntl is None, reason="no record locks on this system")
def test_others_may_write_as_soon_as_a_writer_is_through(tmp_path, files):
    fill(tmp_path / "f", files)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "f")]
    found = subprocess.run(command, input="", capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "held\n"), found.stderr


@pytest.mark.parametrize("size", [-1, 1])
def test_a_damaged_file_is_computed_again_and_named_while_it_is_read(tmp_path, files, size):
    fill(tmp_path / "f", files)
    kept = FeatureFolder(tmp_path / "f", SPEC)
    reader = kept.reader(files)
    path = feature_path(tmp_path / "f", reader.digests["4.png"])
    path.write_bytes(bytes(SPEC.picture_bytes + size))
    with pytest.raises(ValueError, match=f"{path.name} is damaged or was cut off; run again"):
        reader("4.png")
    assert "4.png" not in kept.reader(files)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        reader("4.png")


@pytest.mark.parametrize("content", ["[1]", "3"])
def test_damaged_stamps_are_named(tmp_path, files, content):
    fill(tmp_path / "f", files)
    (tmp_path / "f/stamps.json").write_text(content)
    with pytest.raises(ValueError, match="stamps.json is damaged; delete it"):
        FeatureFolder(tmp_path / "f", SPEC)


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
    for use in (FeatureFolder, lambda folder, spec: writing(folder, spec).__enter__()):
        with pytest.raises(ValueError, match=f"features of another kind \\({next(iter(change))} .* there, .* now\\)"):
            use(tmp_path / "f", replace(SPEC, **change))


def test_a_folder_of_other_things_is_refused_and_stays_as_it_is(tmp_path, files):
    for folder in (tmp_path / "images", files["0.png"]):
        with pytest.raises(ValueError, match="is no folder of features"):
            FeatureFolder(folder, SPEC)
    with pytest.raises(ValueError, match="is no folder of features"), writing(tmp_path / "images", SPEC):
        pass
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == list(files)
    (tmp_path / "f").mkdir()
    (tmp_path / "f/spec.json").write_text("[]")
    with pytest.raises(ValueError, match="spec.json: does not describe features"):
        FeatureFolder(tmp_path / "f", SPEC)


def test_an_absent_folder_holds_nothing_and_is_not_made_by_looking(tmp_path, files):
    assert FeatureFolder(tmp_path / "f", SPEC).reader(files).digests == {}
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
    with pytest.raises(ValueError, match="'float16', 'bfloat16', 'float32', 'float64'; got 'int8'"):
        replace(SPEC, dtype="int8")
