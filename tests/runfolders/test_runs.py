import hashlib
import os
import stat

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from vlmsel import runs


def test_same_configuration_reopens(tmp_path):
    runs.open_run(tmp_path / "run", "a: 1\nb: 2\n")
    runs.open_run(tmp_path / "run", "a: 1\nb: 2\n")
    assert (tmp_path / "run/config.yaml").read_text() == "a: 1\nb: 2\n"
    assert "torch" in runs.read_json(tmp_path / "run/environment.json")


def test_other_configuration_is_refused_with_the_difference(tmp_path):
    runs.open_run(tmp_path / "run", "a: 1\nb: 2\n")
    (tmp_path / "run/result.json").write_text("[]")
    with pytest.raises(ValueError, match="there: b: 2; now: b: 3"):
        runs.open_run(tmp_path / "run", "a: 1\nb: 3\n")


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a run folder"):
        runs.open_run(tmp_path, "a: 1\n")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "result.json"
    runs.write_json(path, [1])
    with pytest.raises(RuntimeError), runs.atomic_path(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert runs.read_json(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_file_hash(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert runs.file_hash(tmp_path / "x") == hashlib.sha256(b"abc").hexdigest()


def test_read_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json: not a JSON file"):
        runs.read_json(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        runs.read_json(tmp_path / "y.json")


def write_state(path):
    """Write as the Trainer does, by torch and not atomically."""
    with runs.writing(path):
        torch.save(torch.zeros(9000), path)


WRITERS = {
    "text": lambda path: runs.write_text(path, "x" * 9000),
    "csv": lambda path: runs.write_csv(path, [["x"] * 9000]),
    "safetensors": lambda path: write_part(path, lambda part: save_file({"a": torch.zeros(9000)}, part)),
    "parquet": lambda path: write_part(
        path, lambda part: pq.write_table(pa.table({"a": torch.randn(9000).tolist()}), part)
    ),
    "folder": lambda path: write_folder(path.parent / "model"),
    "torch": write_state,
}


def write_part(path, write):
    with runs.atomic_path(path) as part:
        write(part)


def write_folder(folder):
    with runs.atomic_folder(folder) as part:
        (part / "inner").mkdir()
        save_file({"a": torch.zeros(9000)}, part / "inner" / "weights.safetensors")
        (part / "about.json").write_text("{}")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_with_the_room_it_has(kind, tmp_path, small_disk):
    path = tmp_path / "run" / "result"
    path.parent.mkdir()
    named = path.parent / "model" if kind == "folder" else path
    with (
        small_disk(4096),
        pytest.raises(OSError, match=rf"{named}: cannot be written \(.*\).* has \d.*free; make room"),
    ):
        WRITERS[kind](path)
    if kind != "torch":  # which the Trainer writes in place
        assert list(path.parent.iterdir()) == []


def test_other_faults_while_writing_are_their_own(tmp_path):
    for problem in (ValueError("a"), OSError("b"), RuntimeError("c"), FileNotFoundError(2, "no such", "d")):
        with pytest.raises(type(problem)) as caught, runs.atomic_path(tmp_path / "x"):
            raise problem
        assert caught.value is problem


@pytest.mark.parametrize("umask", [0o022, 0o007])
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_may_be_read_by_whom_the_umask_says(kind, umask, tmp_path):
    before = os.umask(umask)
    try:
        WRITERS[kind](tmp_path / "result")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}
    folders = [path for path in tmp_path.rglob("*") if path.is_dir()]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask for path in folders)


def test_a_folder_takes_the_place_of_the_one_before_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("")
    with pytest.raises(RuntimeError), runs.atomic_folder(folder) as part:
        (part / "new").write_text("")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "old"]
    with runs.atomic_folder(folder) as part:
        (part / "new").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "new"]
