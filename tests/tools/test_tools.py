"""Benchmarks, builders and recipes are not run by the tests; what they take from the package must be there."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [path.relative_to(ROOT) for folder in ("tools", "recipes") for path in sorted((ROOT / folder).rglob("*.py"))]


def taken(script):
    """Give module and name of whatever a script imports from the package."""
    for node in ast.walk(ast.parse((ROOT / script).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vlmsel":
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module, name):
    try:
        return hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}") is not None
    except ImportError:
        return False


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_what_a_script_takes_from_the_package_is_there(script):
    assert [f"{module}.{name}" for module, name in taken(script) if not is_there(module, name)] == []
