"""What the README shows is what the program takes: its commands parse and its Python runs."""

import re
from pathlib import Path

import pytest
from snippets import command_words, fenced, shell_lines

from vlmsel.cli import COMMANDS, parse

README = Path(__file__).parents[2] / "README.md"
TEXT = README.read_text(encoding="utf-8")
SHELL = shell_lines(TEXT)
VLMSEL = [command_words(line) for line in SHELL if line.startswith("vlmsel ")]


@pytest.mark.parametrize("arguments", VLMSEL, ids=lambda words: words[0])
def test_commands_parse(arguments):
    function, values = parse(arguments[0], arguments[1:])
    assert function.__name__ == arguments[0] and (values.get("out") or arguments[0] in ("inspect", "plan"))


def test_every_step_of_the_main_job_is_shown():
    assert {words[0] for words in VLMSEL} == set(COMMANDS) - {"demo"}


def test_first_command_is_the_demo_and_the_second_the_tests():
    first, second = SHELL[:2]
    assert first.endswith("vlmsel demo") and second.endswith("pytest -n 2")
    own = "python -m venv .venv && .venv/bin/pip install -q uv && .venv/bin/uv pip install -q --python .venv -e "
    assert first.startswith(own + ". && ") and second.startswith(own + "'.[test]' && ")


def test_python_runs():
    code = next(block for block in fenced(TEXT, "python") if "import torch, vlmsel" in block)
    names = {}
    exec(compile(code, str(README), "exec"), names)
    assert names["scores"].shape == (1, 8)
    assert names["scores"][0, :2].sum() < 0  # the target is the mean of these two: they help it


def test_pictures_and_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links and all((README.parent / link).exists() for link in links)
