"""What the book shows is what the program takes: commands parse, Python runs, the tests that it names are there."""

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from snippets import command_words, fenced, shell_lines
from torch.distributed.run import get_args_parser

from vlmsel.cli import COMMANDS, main, parse
from vlmsel.data.world.files import WorldSizes, write_world
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task

ROOT = Path(__file__).parents[1]
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
LINES = [(name, line) for name, text in PAGES.items() for line in shell_lines(text) if line.strip()]
SHOWN = [(name, words) for name, line in LINES if (words := command_words(line))]
OTHERS = ("python -m venv .venv", ". .venv/bin/activate", "pip install -e .", "vlmsel demo", "#!/bin/bash")
SLURM = {"job-name", "array", "gpus", "requeue", "nodes", "ntasks-per-node", "gpus-per-node"}
LAUNCHERS = {"torchrun": get_args_parser, "accelerate launch": launch_command_parser}


@pytest.mark.parametrize(("name", "words"), SHOWN, ids=lambda one: one if isinstance(one, str) else one[0])
def test_commands_parse(name, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    function, values = parse(words[0], words[1:])
    assert function.__name__ == words[0]
    assert values.get("out") or words[0] in ("inspect", "plan")


YAML = [(name, block) for name, text in PAGES.items() for block in fenced(text, "yaml")]


@pytest.mark.parametrize(("name", "block"), YAML, ids=lambda one: one if one in PAGES else "")
def test_configurations_parse_with_the_line_they_open_with(name, block, tmp_path):
    command, flag, _, *words = command_words(block.splitlines()[0])
    path = tmp_path / "file.yaml"
    path.write_text(block)
    assert flag == "--config" and parse(command, [flag, str(path), *words])[1]["config"].count("name=") == 3


def test_most_commands_are_shown():
    assert {words[0] for _, words in SHOWN} >= set(COMMANDS) - {"align", "convert", "rescore", "warmup"}


def test_a_misspelt_option_would_be_found():
    words = next(words for _, words in SHOWN if words[0] == "select")
    with pytest.raises(Exception, match="frction"):
        parse(words[0], [*words[1:], "--frction", "1"])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_take_their_options(launcher):
    lines = [line for _, line in LINES if f"{launcher} " in line and "-m vlmsel" in line]
    for line in lines:
        words = shlex.split(line.partition(f"{launcher} ")[2])
        given = LAUNCHERS[launcher]().parse_args(words)
        assert given.module and given.training_script == "vlmsel" and given.training_script_args[0] in COMMANDS
        assert launcher == "torchrun" or (ROOT / given.config_file).is_file()
    assert lines


def test_other_lines_are_known():
    rest = [line for _, line in LINES if not command_words(line) and line not in OTHERS]
    options = [re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line) for line in rest]
    assert rest and all(found and found[1] in SLURM for found in options), rest


WRITES = re.compile(r"# (\w+\.py)\n")
RUNS = "own-data"  # reads what the five steps leave


@pytest.mark.parametrize("name", [name for name, text in PAGES.items() if fenced(text, "python") and name != RUNS])
def test_python_runs(name, tmp_path, monkeypatch):
    """Blocks of a page run one after the other; one that begins with a file's name is written to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names, before = {}, set(sys.modules)
    for block in fenced(PAGES[name], "python"):
        if found := WRITES.match(block):
            Path(found[1]).write_text(block)
        else:
            exec(compile(block, f"docs/{name}.md", "exec"), names)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem)
    assert names or set(sys.modules) > before


@pytest.fixture
def forms(monkeypatch):
    """The forms of pools, as they were afterwards."""
    from vlmsel.data import formats

    monkeypatch.setattr(formats, "FORMS", list(formats.FORMS))


pytestmark = pytest.mark.usefixtures("forms")


@pytest.fixture
def run(capsys):
    """Run a line and return what it prints."""

    def ran(line):
        assert main(command_words(line)) == 0, capsys.readouterr().err[-2000:]
        return capsys.readouterr().out

    return ran


@pytest.mark.slow
def test_the_five_steps_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (world,) = fenced(PAGES["start"], "python")
    exec(world, {})
    said = [run(line) for line in shell_lines(PAGES["start"]) if command_words(line)]
    assert len(said) == 7 and "exact duplicate              40" in said[0]
    assert "held-out loss" in said[3] and Path("report.html").stat().st_size > 50_000
    table = {}
    exec(fenced(PAGES[RUNS], "python")[0], table)
    assert len(table["best"]) == 80 and table["best"].mean() < table["table"]["HyperINF/gqa"].mean()
    scores = [line for line in shell_lines(PAGES["scores"]) if command_words(line)]
    assert "strata" in run(scores[0]) and "chosen" not in run(scores[1]).splitlines()[0]
    assert Path("mixture.json").exists()


@pytest.mark.slow
def test_the_scorer_of_the_page_runs_beside_the_others(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    write_world("world", WorldSizes(captions=0, pool=200, target=8, questions=1))
    Path("mine.py").write_text(next(block for block in fenced(PAGES["scorer"], "python") if "class PerRow" in block))
    for line in shell_lines(PAGES["scorer"]):
        if command_words(line):
            run(line)
    sys.modules.pop("mine")
    assert Path("mine.json").exists()


def test_records_that_are_shown_are_read(tmp_path):
    records, questions = fenced(PAGES["own-data"], "json")
    (tmp_path / "pool.json").write_text(records)
    assert main(["select", "--pool", f"{tmp_path}/pool.json", "--scorer", "Random", "--count", "2", "--out",
                 f"{tmp_path}/chosen.json"]) == 0  # fmt: skip
    (tmp_path / "questions.json").write_text(questions)
    own = load_task("own", TaskFiles(tmp_path / "questions.json", metric="exact_match"))
    assert own.ids == ["7", "1", "2"] and own.score({"7": "A cat.", "1": "two", "2": "a cat"})["accuracy"] == 2 / 3


def test_tests_that_are_named_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGES["reliability"])
    assert len(named) > 30
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        assert name in [one.name for one in tree.body if isinstance(one, ast.FunctionDef)], (file, name)
