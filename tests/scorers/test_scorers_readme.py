"""The plug-in of the README is a scorer that passes the battery and runs beside the others."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from snippets import fenced

from vlmsel import score_gradients
from vlmsel.scorers import TracIn
from vlmsel.scorers.load import load_scorer
from vlmsel.scorers.testing import check_scorer

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (source,) = [block for block in fenced(README.read_text("utf-8"), "python") if "class Halved(" in block]
    (tmp_path / "halved.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "halved"
    sys.modules.pop("halved", None)


def test_the_scorer_of_the_readme_loads_passes_the_battery_and_halves(module):
    assert "vlmsel.scorers.testing.check_scorer(Halved())" in README.read_text(encoding="utf-8")
    scorer = load_scorer(f"{module}:Halved")
    check_scorer(scorer)
    gradients = {"w": torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))}
    targets = {"w": gradients["w"][:1]}
    halved = score_gradients(gradients, targets, scorer)
    torch.testing.assert_close(2 * halved, score_gradients(gradients, targets, TracIn()))
