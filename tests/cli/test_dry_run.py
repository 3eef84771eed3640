"""What is the same for every command: a dry run, how much is said, the stage of a bar, completion, the summary."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from run_folders import make_pool

from vlmsel import __version__, cli, progress
from vlmsel.commands.work import WORK
from vlmsel.shell import completion


@pytest.fixture
def pool(tmp_path):
    return make_pool(tmp_path / "data", 4, None) / "pool.json"


def words(command, folder, pool):
    """Enough options for each command, on files that are there."""
    sample = {"--pool": pool, "--images": pool.parent}
    own = {
        "align": {"--data": pool, "--images": pool.parent, "--model": "tiny"},
        "warmup": {**sample, "--model": "tiny-aligned"},
        "score": {**sample, "--model": "tiny-aligned", "--targets.goal": pool},
        "choose": {**sample, "--model": "tiny-aligned", "--targets.goal": pool, "--fraction": "0.5"},
        "tune": {"--data": pool, "--images": pool.parent, "--model": "tiny-aligned"},
        "validate": {"--run": folder},
        "evaluate": {"--model": "tiny-aligned", "--task": "gqa", "--questions": pool, "--images": pool.parent},
        "detect": {"--model": "tiny-text", "--train": pool, "--validation": pool},
    }[command]
    return [command, *(str(word) for pair in own.items() for word in pair), "--out", f"{folder}/run"]


@pytest.mark.parametrize("command", WORK)
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(command, pool, tmp_path, capsys):
    assert cli.main([*words(command, tmp_path, pool), "--dry_run"]) == 0
    said, _, config = capsys.readouterr().out.partition("\n\n")
    assert said.startswith(f"vlmsel {command} would\n  1. ") and f"writes {tmp_path}/run/: " in said
    assert "{" not in said.partition("writes")[0].replace("{}", "")
    found = yaml.safe_load(config)
    assert not {"dry_run", "log_level", "out"} & set(found) and config.startswith(f"# vlmsel {command}\n")
    assert not (tmp_path / "run").exists()
    if command == "score":
        assert f"reads {pool}: 4 records" in said and f"reads target goal: {pool}: 4 records" in said


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        ("--pool", "none.json", "none.json: no such file"),
        ("--targets.goal", "none.json", "target goal: none.json: no such file"),
        ("--images", "none", "none: no such image folder"),
        ("--model", "./none", "./none: no model; give a preset (tiny, llava-7b, "),
    ],
)
def test_paths_are_looked_at_before_anything_is_loaded(option, value, line, pool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlmsel.models.assembly.load", None)
    for dry in ([], ["--dry_run"]):
        assert cli.main([*words("score", tmp_path, pool), option, value, *dry]) == 2
        assert capsys.readouterr().err.startswith(f"error: {line}")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_an_evaluation_looks_at_its_questions(pool, tmp_path, capsys):
    for option, line in (("--questions", "none.json: no such file"), ("--model", "none.json: no model; give a preset")):
        assert cli.main([*words("evaluate", tmp_path, pool), option, "none.json", "--dry_run"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {line}")


def test_a_dry_run_refuses_a_folder_that_the_command_would(pool, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("")
    assert cli.main([*words("tune", tmp_path, pool), "--dry_run"]) == 2
    assert "exists but is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(("level", "shown"), [("info", "note\nout\nnext: more\n"), ("quiet", "out\nnext: more\n")])
def test_a_quiet_command_says_its_summary_alone(level, shown, capsys):
    with progress.speaking(level):
        print("note")
        with progress.within("step"):
            progress.ended(then="not me")
        progress.ended("out", then="more")
    assert capsys.readouterr().out == shown


def test_a_summary_has_ten_lines_at_most(capsys):
    progress.ended(*map(str, range(30)), then="more")
    assert capsys.readouterr().out.splitlines() == [*map(str, range(9)), "next: more"]


def test_bars_are_drawn_on_terminals_alone(monkeypatch, capsys):
    progress.begin(["first", "second"])
    bar = progress.bar("second", 3, "sample", 1)
    assert bar.disable
    assert progress.staged("second") == "[2/2] second"
    with progress.within("other"):
        progress.begin([])
        assert progress.staged("second") == "second"
    assert progress.staged("second") == "[2/2] second"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress.bar("second", 3, "sample", 1) as bar:
        assert not bar.disable and (bar.desc, bar.n) == ("[2/2] second", 1)
    with progress.speaking("quiet"):
        assert progress.bar("second", 3, "sample").disable


def test_training_logs_to_what_is_installed_alone(pool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlmsel.training.phases.find_spec", lambda name: None)
    assert cli.main([*words("tune", tmp_path, pool), "--log_to", "tensorboard"]) == 2
    assert capsys.readouterr().err.startswith("error: --log_to tensorboard: the package tensorboard is not installed;")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_and_options():
    text = completion.written("bash", {"tune": ["--data", "--dtype"], "score": ["--pool"]})
    asked = 'COMP_WORDS=({}); COMP_CWORD={}; _vlmsel; echo "${{COMPREPLY[@]}}"'
    for typed, found in (("vlmsel t", "tune"), ("vlmsel tune --d", "--data --dtype"), ("vlmsel score --", "--pool")):
        line = f"{text}\n{asked.format(typed, typed.count(' '))}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        assert done.stdout.split() == found.split()


def test_completion_knows_every_option(capsys):
    assert cli.main(["completion", "fish"]) == 0
    shown = capsys.readouterr().out
    assert 'seen_subcommand_from tune" -l settings.log_to\n' in shown and 'from score" -l dry_run\n' in shown
    assert cli.main(["completion", "csh"]) == 2
    assert capsys.readouterr().err == "error: vlmsel completion takes one of bash, zsh, fish\n"


def test_versions_and_exit_codes_are_told(capsys):
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"vlmsel {__version__}" and {line.split()[0] for line in lines} >= {"python", "torch", "peft"}
    assert cli.main(["--help"]) == 0
    assert "exit codes:\n  0    done\n  2    wrong input" in capsys.readouterr().out


def test_the_citation_names_this_version():
    content = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text())
    assert content["version"] == __version__ and content["license"] == "Apache-2.0"
