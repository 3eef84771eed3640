"""The reference of the commands as Markdown, from vlmsel/assets/options.json and the commands' docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from vlmsel.cli import COMMANDS, EXIT
from vlmsel.shell.listed import listed

ROOM = Path(__file__).parents[1] / "vlmsel" / "commands"
OPTION = re.compile(r"  (-\S.*?)(?:  +(\S.*))?$")
DETAIL = re.compile(r"^(.*?)\s*\(((?:required|type:|default:).*)\)$", re.DOTALL)


def names() -> list[str]:
    """Return the commands, as `vlmsel --help` orders them."""
    return list(COMMANDS)


def pages() -> dict[str, str]:
    """Return Markdown by path: a page for each command, and their list."""
    made = {f"commands/{name}.md": page(name) for name in names()}
    lines = [f"| [`vlmsel {name}`]({name}.md) | {escaped(what)} |" for name, what in COMMANDS.items()]
    table = "\n".join(["| command | what it does |", "|---|---|", *lines])
    shared = "Every command takes `--config FILE`, a YAML file with any of its options, and dotted options over it."
    return made | {"commands/index.md": f"# Commands\n\n{shared}\n\n{table}\n\n## Exit codes\n\n```text\n{EXIT}\n```\n"}


def page(name: str) -> str:
    """Write the page of a command."""
    usage, _, options = listed()[name]["help"].partition("\n\n")
    tree = ast.parse((ROOM / f"{name}.py").read_text("utf-8"))
    function = next(one for one in tree.body if isinstance(one, ast.FunctionDef) and one.name == name)
    said = [ast.get_docstring(tree), (ast.get_docstring(function) or "").partition("\n\nArgs:")[0]]
    return "\n\n".join(
        [f"# vlmsel {name}", *(escaped(text or "") for text in said), *sections(options), "## Usage",
         f"```text\n{usage.replace(chr(8), '')}\n```"]
    )  # fmt: skip


def sections(text: str) -> Iterator[str]:
    """Write what follows the usage in a command's help: its groups of options as definition lists."""
    for group in re.split(r"\n(?=\S.*:\n)", f"\n{text}")[1:]:
        heading, _, rest = group.partition(":\n")
        yield f"## {heading[0].upper()}{heading[1:]}"
        before, entries = entries_of(rest)
        if before:
            yield escaped(before)
        yield "\n\n".join(definition(option, what) for option, what in entries)


def entries_of(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Return what a group says before its options, and these with what is said of each.

    >>> entries_of("  All.\\n\\n  --out OUT  where. (type: str,\\n        default: a)\\n  --dry_run\\n      go.\\n")
    ('All.', [('--out OUT', 'where. (type: str, default: a)'), ('--dry_run', 'go.')])
    """
    before: list[str] = []
    entries: list[list[str]] = []
    for line in text.replace("\b", "").splitlines():
        if found := OPTION.match(line):
            entries.append([found[1], found[2] or ""])
        elif line.strip():
            if entries:
                entries[-1][1] = f"{entries[-1][1]} {line.strip()}".strip()
            else:
                before.append(line.strip())
    return " ".join(before), [(option, what) for option, what in entries]


def definition(option: str, what: str) -> str:
    """Write an option as an item of a definition list, with an anchor of its name.

    >>> print(definition("--count COUNT", "how many of <all>. (type: int, default: 3)"))
    `--count COUNT`{ #count }
    :   how many of &lt;all&gt;. `type: int, default: 3`
    """
    names = re.findall(r"--([\w.]+)", option)
    anchor = names[-1].replace(".", "-") if names else option.strip("-")
    detail = DETAIL.match(what)
    said = f"{escaped(detail[1])} `{detail[2].replace('`', '')}`" if detail else escaped(what)
    return f"`{option}`{{ #{anchor} }}\n:   {said or '&nbsp;'}"


def escaped(text: str) -> str:
    """Keep Markdown and HTML from reading plain text, but for what stands in backticks.

    >>> escaped("<b> of a_b_c, `x < y`")
    '&lt;b&gt; of a\\\\_b\\\\_c, `x < y`'
    """
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if place % 2 else _plain(part) for place, part in enumerate(parts))


def _plain(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([*_\[\]|])", r"\\\1", text)
