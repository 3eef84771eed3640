"""Who may use a run folder: the same command, a mended one while there are no results, one process at a time."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from vlmsel import runs

HOLD = """
import sys
from vlmsel import runs
runs.open_run(sys.argv[1], 'a: 1\\n', sys.argv[2])
print('open', flush=True)
input()
"""
LEFT = ".vlmsel.elsewhere.99999999.part"  # what a killed process leaves behind a file's name


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


def test_two_names_of_one_file_make_no_other_configuration_and_two_files_do(tmp_path, monkeypatch):
    for name in ("there/pool.json", "elsewhere/pool.json"):
        runs.write_text(tmp_path / name, "[]")
    (tmp_path / "elsewhere/inside").mkdir()
    (tmp_path / "there/link").symlink_to(tmp_path / "elsewhere/inside")
    monkeypatch.chdir(tmp_path / "there")
    assert runs.different("pool: pool.json", f"pool: {tmp_path}/there/./pool.json") == ""
    assert runs.different("pool: pool.json", "pool: link/../pool.json")  # is elsewhere's
    assert runs.different("blocks: a/../b", "blocks: b") and runs.different("column: x/", "column: x")


def test_what_a_killed_process_left_does_not_block_a_folder(tmp_path):
    (tmp_path / f"config.yaml{LEFT}").write_text("a:")
    (tmp_path / ".lock").touch()
    runs.open_run(tmp_path, "a: 1\n")
    assert names(tmp_path) == ["config.yaml", "environment.json"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not a run folder"):
        runs.open_run(tmp_path / "file", "a: 1\n")


def test_a_configuration_that_somebody_wrote_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 2\n")
    with pytest.raises(ValueError, match="not a run folder"):
        runs.open_run(tmp_path, "a: 1\n")
    assert (tmp_path / "config.yaml").read_text() == "a: 2\n" and names(tmp_path) == ["config.yaml"]


def test_a_refused_folder_is_not_tidied(tmp_path):
    for name in ("notes.txt", f"notes.txt{LEFT}", "song.part"):
        (tmp_path / name).touch()
    before = names(tmp_path)
    with pytest.raises(ValueError, match="not a run folder"):
        runs.open_run(tmp_path, "a: 1\n")
    assert names(tmp_path) == before


def test_only_what_was_written_here_is_tidied(tmp_path):
    runs.open_run(tmp_path, "a: 1\n")
    (tmp_path / "parts").mkdir()
    for name in ("song.part", "parts/song.1.part", f"parts/0.safetensors{LEFT}"):
        (tmp_path / name).touch()
    runs.open_run(tmp_path, "a: 1\n")
    assert names(tmp_path / "parts") == ["song.1.part"] and "song.part" in names(tmp_path)


def test_what_no_result_depends_on_does_not_block(tmp_path):
    runs.open_run(tmp_path, "a: 1\ndevice: cpu\nworkers: 0\ncurvature_on: auto\nsettings:\n  workers: 0\n  seed: 1\n")
    (tmp_path / "parts").mkdir()
    runs.open_run(tmp_path, "a: 1\ndevice: cuda:1\nworkers: 4\nshard: 2/3\nsettings:\n  workers: 2\n  seed: 1\n")
    with pytest.raises(ValueError, match="there: settings.seed: 1; now: settings.seed: 2"):
        runs.open_run(tmp_path, "a: 1\nsettings:\n  seed: 2\n")
    with pytest.raises(ValueError, match="there: nothing; now: targets.device: x.json"):
        runs.open_run(tmp_path, "a: 1\nsettings:\n  seed: 1\ntargets:\n  device: x.json\n")


def test_inputs_are_compared_from_the_first_result_on(tmp_path):
    runs.open_run(tmp_path, "a: 1\n")
    runs.same_inputs(tmp_path, {"the pool": "one"})
    runs.same_inputs(tmp_path, {"the pool": "two"})
    (tmp_path / "curvature.0of1").mkdir()
    runs.same_inputs(tmp_path, {"the pool": "two"})
    with pytest.raises(ValueError, match="the pool changed since this run began \\(two then, one now\\)"):
        runs.same_inputs(tmp_path, {"the pool": "one"})
    with pytest.raises(ValueError, match="the model changed since this run began \\(not there then, new now\\)"):
        runs.same_inputs(tmp_path, {"the pool": "two", "the model": "new"})
    runs.same_inputs(tmp_path, {"the model": "new"}, more=True)
    with pytest.raises(ValueError, match="the model changed"):
        runs.same_inputs(tmp_path, {"the model": "other"}, more=True)


def test_other_versions_are_other_inputs(tmp_path, monkeypatch):
    runs.open_run(tmp_path, "a: 1\n")
    runs.same_inputs(tmp_path, {})
    (tmp_path / "parts").mkdir()
    own = runs.versions()
    monkeypatch.setattr(runs, "versions", lambda: {**own, "torch": "9.9"})
    with pytest.raises(ValueError, match="the version of torch changed since this run began .*, 9.9 now"):
        runs.same_inputs(tmp_path, {})


def test_a_run_that_does_not_say_what_it_began_with_is_not_continued(tmp_path):
    runs.open_run(tmp_path, "a: 1\n")
    (tmp_path / "predictions.jsonl").touch()
    with pytest.raises(ValueError, match="does not say what it began with"):
        runs.same_inputs(tmp_path, {})


@contextmanager
def another(folder, worker=""):
    """Have another process at work in a folder within the block."""
    command = [sys.executable, "-c", HOLD, str(folder), worker]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "open\n"
            yield
        finally:
            other.kill()


needs_locks = pytest.mark.skipif(runs.fcntl is None, reason="no record locks on this system")


@needs_locks
def test_one_process_at_a_time(tmp_path):
    with another(tmp_path), pytest.raises(ValueError, match="another process is at work in this folder"):
        runs.open_run(tmp_path, "a: 1\n")
    runs.open_run(tmp_path, "a: 1\n")
    runs.open_run(tmp_path, "a: 1\n")


@needs_locks
def test_jobs_share_a_folder_and_a_whole_run_does_not(tmp_path):
    with another(tmp_path, ".0of2"):
        for worker in ("", ".0of2"):
            with pytest.raises(ValueError, match="another process is at work"):
                runs.open_run(tmp_path, "a: 1\n", worker)
        with pytest.raises(ValueError, match="another configuration"):  # though there is no result yet
            runs.open_run(tmp_path, "a: 2\n", ".1of2")
        (tmp_path / f"parts{LEFT}").touch()
        runs.open_run(tmp_path, "a: 1\n", ".1of2")
        assert (tmp_path / f"parts{LEFT}").exists()  # it may be the other's
    runs.open_run(tmp_path, "a: 1\n", ".1of2")
    assert not (tmp_path / f"parts{LEFT}").exists()


@needs_locks
def test_no_job_begins_beside_a_whole_run(tmp_path):
    with another(tmp_path), pytest.raises(ValueError, match="another process is at work"):
        runs.open_run(tmp_path, "a: 1\n", ".0of2")
