"""The built package, installed outside the tree: it runs, is typed, and brings the tiny pretrained models along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmsel import __version__

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


def run(folder, *command, **variables):
    """Run a command in a folder that is not the tree, where nothing leads to the tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(folder, *PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT)
    (wheel,) = folder.glob("vlmsel-*.whl")
    run(folder, *PIP, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel)
    return folder / "site"


def test_types_and_assets_are_in_the_wheel(installed):
    assert (installed / "vlmsel/py.typed").is_file()
    kept = {path.relative_to(ROOT) for path in (ROOT / "vlmsel").rglob("*") if path.is_file()}
    kept = {path for path in kept if "__pycache__" not in path.parts}
    assert {path for path in kept if "assets" in path.parts} and all((installed / path).is_file() for path in kept)


def test_commands_run_outside_the_tree(installed, tmp_path):
    where = "import vlmsel; print(vlmsel.__file__)"
    python = {"PYTHONPATH": str(installed)}
    assert run(tmp_path, sys.executable, "-c", where, **python).startswith(str(installed))
    helped = run(tmp_path, sys.executable, "-m", "vlmsel", "demo", "--help", **python)
    assert helped.startswith("usage: vlmsel demo ") and "--settings.pool" in helped and "--seeds" in helped
    versions = run(tmp_path, sys.executable, "-m", "vlmsel", "--version", **python).splitlines()
    assert versions[0] == f"vlmsel {__version__}" and any(line.startswith("torch ") for line in versions)
