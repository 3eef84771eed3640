"""Help and mistakes in options are answered from a file, at once; the file says what the commands themselves say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from snippets import command_words, lines_of

from vlmsel import cli
from vlmsel.shell.listed import listed, wrong_option

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_file_is_that_of_the_commands(command):
    assert listed().get(command) == cli.described(command), "run python tools/write_options.py"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--frac", "0.1"], "unrecognized arguments: --frac 0.1, did you mean --fraction?"),
        (["--frac=0.1", "x"], "unrecognized arguments: --frac=0.1, did you mean --fraction?"),
        (["--count", "many"], "count must be int or null, got many"),
        (["--fraction=a"], "fraction must be float or null, got a"),
        (["--fraction", "20%"], "fraction must be float or null, got 20% (20% is 0.2)"),
        (["--rule", "best"], ""),  # null or a choice: the parser knows
        (["--combine", "max"], "combine must be one of rank, mean, got max"),
        (["--quota.gqa", "0.5", "--count", "null", "--count", "3", "--scores", "--x"], "unrecognized arguments: --x"),
    ],
)
def test_mistakes_in_options(words, line):
    assert wrong_option("select", words) == line


@pytest.mark.parametrize("words", [["score", "--help"], ["tune", "-h"], ["tune", "--settings.epochs", "few"]])
def test_these_need_no_torch(words):
    code = f"import sys, vlmsel.cli; code = vlmsel.cli.main({words}); "
    code += "print('loaded:', sorted({'torch', 'jsonargparse', 'numpy'} & set(sys.modules))); sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "few" in words else 0) and done.stdout.endswith("loaded: []\n")


TEXTS = [ROOT / "README.md", *sorted(ROOT.glob("recipes/*/README.md")), *sorted(ROOT.glob("recipes/*/*.sh"))]
LINES = [line for path in TEXTS for line in lines_of(path.read_text("utf-8"))]
SHOWN = [command_words(line) for line in LINES if line.startswith("vlmsel ") and line.count("'") % 2 == 0]


def test_every_command_that_is_shown_passes():
    known = [words for words in SHOWN if words and words[0] in cli.COMMANDS]
    assert len(known) > 20 and any("--lora.r" in words for words in known)
    for command, *words in known:
        plain = [re.sub(r"\$(\w+|{[^}]*})", "1", word) for word in words]  # what a script's variables may hold
        assert wrong_option(command, plain) == "", words


def test_what_only_the_parser_knows_is_left_to_it():
    assert wrong_option("tune", ["--log_to=tensorboard"]).startswith("unrecognized")  # cli writes it out before
    assert wrong_option("evaluate", ["--tasks.gqa.questions", "q.json", "--models.a", "m"]) == ""
    assert wrong_option("tune", ["--lora.r", "4", "--lora.targets+", "q_proj"]) == ""
