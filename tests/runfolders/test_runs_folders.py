"""Who may use a run folder: the same command, a mended one while there are no results, one process at a time."""

import subprocess
import sys

import pytest

from vlmsel import runs

HOLD = "import sys; from vlmsel import runs; runs.open_run(sys.argv[1], 'a: 1\\n'); print('open', flush=True); input()"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_a_run_without_results_gives_its_folder_to_the_mended_command(tmp_path):
    runs.open_run(tmp_path, "images: wrong\n")
    for name in ("skipped.json", "skipped_gqa.json", "inputs.json"):
        (tmp_path / name).write_text("[]")
    runs.open_run(tmp_path, "images: right\n")
    assert (tmp_path / "config.yaml").read_text() == "images: right\n"
    assert names(tmp_path) == ["config.yaml", "environment.json"]


@pytest.mark.parametrize("result", ["directions.safetensors", "phase.json", "metrics.json"])
def test_a_run_with_results_keeps_its_folder(tmp_path, result):
    runs.open_run(tmp_path, "images: old\n")
    (tmp_path / result).write_text("{}")
    with pytest.raises(ValueError, match="there: images: old; now: images: new"):
        runs.open_run(tmp_path, "images: new\n")
    assert (tmp_path / "config.yaml").read_text() == "images: old\n" and (tmp_path / result).exists()


def test_order_comments_and_nulls_make_no_other_configuration(tmp_path):
    runs.open_run(tmp_path, "# vlmsel score\na: 1\nb: null\nc: 3\n")
    (tmp_path / "result").write_text("")
    runs.open_run(tmp_path, "c: 3\na: 1\n")
    with pytest.raises(ValueError, match="there: nothing; now: b: 2"):
        runs.open_run(tmp_path, "a: 1\nb: 2\nc: 3\n")


def test_what_a_killed_process_left_does_not_block_a_folder(tmp_path):
    (tmp_path / "config.yaml.part").write_text("a:")
    (tmp_path / ".lock").touch()
    runs.open_run(tmp_path, "a: 1\n")
    assert names(tmp_path) == ["config.yaml", "environment.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a run folder"):
        runs.open_run(tmp_path / "file", "a: 1\n")


@pytest.mark.skipif(runs.fcntl is None, reason="no record locks on this system")
def test_one_process_at_a_time(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(ValueError, match="another process is at work in this folder"):
            runs.open_run(tmp_path, "a: 1\n")
        other.kill()
        other.wait()
    runs.open_run(tmp_path, "a: 1\n")
    runs.open_run(tmp_path, "a: 1\n")
