"""The reference of the Python interface as Markdown, read from the sources; nothing is imported but the names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import vlmsel
from tools.docs_commands import escaped

ROOT = Path(__file__).parents[1]
ROOMS = {
    "Gradients": ["vlmsel.select_blocks", "vlmsel.per_sample_gradients", "vlmsel.capture", "vlmsel.Factor"],
    "Scoring arrays": ["vlmsel.score_gradients"],
    "Scorers": [],  # all that are public
    "To write a scorer": [
        "vlmsel.scorers.GradientScorer", "vlmsel.scorers.Solved", "vlmsel.scorers.Statistic",
        "vlmsel.scorers.BlockTargets", "vlmsel.scorers.SampleScorer", "vlmsel.scorers.Samples",
        "vlmsel.scorers.FeatureScorer", "vlmsel.scorers.Features", "vlmsel.scorers.testing.check_scorer",
    ],
    "To read pools": [
        "vlmsel.data.formats.base.Form", "vlmsel.data.formats.base.checked_sample", "vlmsel.data.sample.Sample",
        "vlmsel.data.sample.Turn", "vlmsel.data.formats.read_records",
    ],
    "To read what runs leave": ["vlmsel.scoring.table.read_table", "vlmsel.scoring.affinity.Affinities"],
    "Models": ["vlmsel.models.open.open_subject", "vlmsel.models.subject.Subject", "vlmsel.VLM"],
}  # fmt: skip
SCORER = re.compile(r"vlmsel\.scorers\.(?!base|statistics|testing)")
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):$")
Definition = ast.FunctionDef | ast.ClassDef


class Found(NamedTuple):
    """A definition and the module it stands in."""

    module: str
    node: Definition


def page() -> str:
    """Write the page."""
    rooms = {name: list(own) for name, own in ROOMS.items()}
    shown = {one for own in rooms.values() for one in own}
    rooms["Scorers"] = [f"vlmsel.{one}" for one in vlmsel._HOMES if f"vlmsel.{one}" not in shown]
    made = ["# Python", "Every name below is imported as it is written. Shapes stand in brackets."]
    for room, own in rooms.items():
        made.append(f"## {room}")
        made += [part for name in own for part in entry(name)]
    return "\n\n".join(made) + "\n"


def entry(name: str) -> Iterator[str]:
    """Write a function, or a class with its public methods."""
    module, _, own = name.rpartition(".")
    found = find(vlmsel._HOMES[own] if module == "vlmsel" else module, own)
    yield f"### `{own}` {{ #{name} }}"
    yield f"```python\nfrom {module} import {own}\n\n{signature(found.node)}\n```"
    if SCORER.match(found.module):  # its formula and source
        yield from described(tree_of(found.module))
    yield from described(found.node)
    for method in methods(found.node):
        yield f"#### `{own}.{method.name}` {{ #{name}.{method.name} }}"
        yield f"```python\n{signature(method)}\n```"
        yield from described(method)


@cache
def tree_of(module: str) -> ast.Module:
    """Parse a module."""
    path = ROOT / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


@cache
def find(module: str, name: str) -> Found:
    """Find where a name that a module has is defined.

    Raises:
        ValueError: it is nowhere.
    """
    for node in tree_of(module).body:
        if isinstance(node, Definition) and node.name == name:
            return Found(module, node)
        if isinstance(node, ast.ImportFrom) and any((one.asname or one.name) == name for one in node.names):
            assert node.module is not None
            return find(node.module, name)
    raise ValueError(f"{module}: no {name}, which the reference of Python shows; mend ROOMS in tools/docs_api.py")


def methods(node: Definition) -> list[ast.FunctionDef]:
    """Return the public methods that say what they do."""
    body = node.body if isinstance(node, ast.ClassDef) else []
    own = [one for one in body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    return [one for one in own if ast.get_docstring(one)]


def signature(node: Definition) -> str:
    """Write how something is called; of a record, its fields.

    >>> print(signature(ast.parse("@dataclass\\nclass A(B):\\n    x: int = 3").body[0]))
    @dataclass
    class A(B):
        x: int = 3
    """
    decorators = [f"@{ast.unparse(one)}" for one in node.decorator_list]
    if isinstance(node, ast.FunctionDef):
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        line = f"def {node.name}({ast.unparse(node.args)}){returns}"
        if len(line) > 100:
            inside = ",\n    ".join(split_arguments(ast.unparse(node.args)))
            line = f"def {node.name}(\n    {inside},\n){returns}"
        return "\n".join([*decorators, line])
    bases = ", ".join(map(ast.unparse, node.bases))
    fields = [f"    {ast.unparse(one)}" for one in node.body if isinstance(one, ast.AnnAssign)]
    return "\n".join([*decorators, f"class {node.name}({bases}):" if bases else f"class {node.name}:", *fields])


def split_arguments(text: str) -> list[str]:
    """Split what stands between parentheses at its outer commas.

    >>> split_arguments("a: dict[str, int], b=(1, 2)")
    ['a: dict[str, int]', 'b=(1, 2)']
    """
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def described(node: Definition | ast.Module) -> Iterator[str]:
    """Write a docstring: prose, sections as definition lists, examples and formulas as code."""
    for block in (ast.get_docstring(node) or "").split("\n\n"):
        first, *rest = block.splitlines() or [""]
        if found := SECTION.match(first):
            yield f"*{found[1]}*"
            yield "\n\n".join(definitions("\n".join(rest)))
        elif block.startswith(">>>"):
            yield f"```pycon\n{block}\n```"
        elif block.startswith("    "):
            yield f"```text\n{block}\n```"
        elif block:
            yield escaped(block)


def definitions(text: str) -> list[str]:
    """Write `name: what it is` entries, which may go on in deeper lines."""
    entries = re.split(r"\n(?=    \S)", f"\n{text}")[1:]
    if not any(re.match(r"    \*?[\w, ]+: ", one) for one in entries):
        return [escaped(" ".join(text.split()))]
    pairs = [" ".join(one.split()).partition(": ") for one in entries]
    return [f"`{name}`\n:   {escaped(what)}" for name, _, what in pairs]
