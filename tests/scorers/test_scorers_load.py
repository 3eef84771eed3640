"""Scorers by name: built-in, preset, settings, plug-ins; whatever is wrong ends as a ValueError of one line."""

import importlib
import sys

import pytest

from vlmsel.scorers import BUILT_IN, DataInf, HyperINF, LiSSA, TracIn
from vlmsel.scorers.load import load_scorer

PLUGIN = """
from dataclasses import dataclass
from vlmsel.scorers import GradientScorer, Scorer, Solved

@dataclass(frozen=True)
class Plug(GradientScorer):
    alpha: float = 1.0
    name: str = "Plug"

    def solve(self, statistic, v):
        return Solved(v * self.alpha)

def preset():
    return Plug(alpha=3.0, name="Plug.three")

@dataclass(frozen=True)
class Nameless(Scorer):
    pass

@dataclass(frozen=True)
class Slashed(Plug):
    name: str = "a/b"

class Abstract(GradientScorer):
    name = "Abstract"

def refuses():
    raise KeyError("no\\nsuch key")

def explains():
    raise ValueError("alpha must be\\n  another")

NOT_A_SCORER = dict
NUMBER = 3
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module `plugged_in` on the import path, and `plugged_broken`, which cannot be imported."""
    (tmp_path / "plugged_in.py").write_text(PLUGIN)
    (tmp_path / "plugged_broken.py").write_text("raise RuntimeError('first line\\nsecond line')\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    for module in ("plugged_in", "plugged_broken"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_scorers_load_by_their_name(name):
    scorer = load_scorer(name)
    assert type(scorer) is BUILT_IN[name] and scorer.name == name and load_scorer(f"{name}()") == scorer


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("HyperINF(damping=10)", HyperINF(damping=10)),
        (" HyperINF( damping = 1e1, side='short' ) ", HyperINF(damping=10.0, side="short")),
        ("TracIn(block_scale=True, name='scaled (a=1)')", TracIn(block_scale=True, name="scaled (a=1)")),
        ("LiSSA(scale=None)", LiSSA()),
        ("LiSSA.official", LiSSA.official()),
        ("LiSSA.official(damping=1.0)", LiSSA.official(1.0)),
        ("HyperINF.official_vlm(name='vlm')", HyperINF.official_vlm(name="vlm")),
        ("vlmsel.scorers:DataInf(damping=2)", DataInf(2)),
        ("vlmsel.scorers.DataInf", DataInf()),
    ],
)
def test_settings_and_presets(spec, expected):
    assert load_scorer(spec) == expected


def test_a_plug_in_loads_by_its_import_path(plugin):
    for spec in ("plugged_in:Plug(alpha=2.5)", "plugged_in.Plug(alpha=2.5)"):
        scorer = load_scorer(spec)
        assert (type(scorer).__name__, scorer.alpha, scorer.name) == ("Plug", 2.5, "Plug")
    assert load_scorer("plugged_in:preset").name == "Plug.three"


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "no scorer is called ''"),
        ("Length", "Length needs no score run: every table has it, vlmsel select --scorer Length takes it"),
        ("Hyperinf", "no scorer is called 'Hyperinf'; there are HyperINF, DataInf, LiSSA, TracIn, Adafactor, Exact, K"),
        ("HyperINF.publised", "HyperINF has no preset 'publised'"),
        ("HyperINF.statistic", "HyperINF has no preset 'statistic'"),
        ("DataInf.official", "DataInf has no preset 'official'"),
        ("HyperINF(", "expected a name and settings such as HyperINF"),
        ("HyperINF(10)", "expected a name and settings"),
        ("HyperINF(**{'damping': 1})", "expected a name and settings"),
        ("HyperINF(damping=1) + 1", "expected a name and settings"),
        ("HyperINF(damping=1)(steps=2)", "expected a name and settings"),
        ("HyperINF(damping=1, damping=2)", "expected a name and settings"),
        ("HyperINF(damping=print(1))", "expected a name and settings"),
        ("HyperINF(damping={[]: 1})", "expected a name and settings"),
        ("HyperINF(damping=\0)", "expected a name and settings"),
        ("HyperINF(dumping=1)", "unexpected keyword argument 'dumping'"),
        ("HyperINF(damping=-1)", "damping must be a number above 0, got -1"),
        ("HyperINF(damping='1')", "damping must be a number above 0, got '1'"),
        ("TracIn(name='a/b')", "its name must be a text without '/', got 'a/b'"),
        ("TracIn(name='')", "its name must be a text without '/', got ''"),
        ("TracIn(name=3)", "its name must be a text without '/', got 3"),
        ("no_such_module:Plug", "cannot be imported: ModuleNotFoundError"),
        (":Plug", "no scorer is called|cannot be imported"),
        ("plugged_in:", "cannot be imported: AttributeError"),
        ("plugged_in:Missing", "cannot be imported: AttributeError: .* 'Missing'"),
        ("plugged_broken:Plug", "cannot be imported: RuntimeError: first line second line"),
        ("plugged_in:NOT_A_SCORER", "is a dict, not a vlmsel.scorers.Scorer"),
        ("plugged_in:NUMBER", "not callable"),
        ("plugged_in:Nameless", "its name must be a text without '/', got None"),
        ("plugged_in:Slashed", "its name must be a text without '/', got 'a/b'"),
        ("plugged_in:Abstract", "abstract"),
        ("plugged_in:refuses", "cannot be made: KeyError"),
        ("plugged_in:explains", "alpha must be another"),
    ],
)
def test_what_is_wrong_is_told_on_one_line(plugin, spec, message):
    with pytest.raises(ValueError, match=message) as refused:
        load_scorer(spec)
    assert "\n" not in str(refused.value)
