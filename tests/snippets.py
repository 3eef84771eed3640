"""What texts show: fenced blocks, and the words of every `vlmsel` command in them."""

import re
import shlex

COMMAND = re.compile(r"(?:^|\s)(?:-m )?vlmsel (?=[a-z])(.*)$")
VARIABLES = {"$SLURM_ARRAY_TASK_ID": "3", "$MASTER": "node1"}


def fenced(text, language):
    """Return the blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def lines_of(text):
    """Return lines of a shell, joined where one goes on in the next."""
    return text.replace("\\\n", " ").splitlines()


def shell_lines(text):
    """Return the lines of all blocks for a shell."""
    return [line for block in fenced(text, "bash") for line in lines_of(block)]


def command_words(line):
    """Return what follows `vlmsel`, or `-m vlmsel` behind a launcher, in a line; [] where there is no such command."""
    found = COMMAND.search(line)
    words = shlex.split(found[1], comments=True) if found else []
    for name, value in VARIABLES.items():
        words = [word.replace(name, value) for word in words]
    return words
