import hashlib

import pytest

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
