"""The studies of solvers and curvature: what they measure, checked where it is known; their recipes, run small."""

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("recipes/*/*.sh"))
SMALL = {
    "convergence": ("--dims 16 --samples 40 --steps 8", ["schulz.md", "curves.csv", "curves.md", "curves_16.png"]),
    "inversion": ("--dims 16 32 --samples 100 --seeds 1", ["inversion.csv", "inversion.md", "inversion.png"]),
    "product_cost": ("--ranks 1 2 --size 32 --samples 8", ["product_cost.csv", "product_cost.md", "product_cost.png"]),
    "curvature": ("--samples 8", ["summary.md", "distances.csv", "ranks.csv", "matrices.png", "ranks.png"]),
}


@pytest.fixture
def tool(monkeypatch):
    """Load a script of tools/ as it runs there."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in ("systems", "solver_study"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_run_scripts_are_bash(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert script.read_text().splitlines()[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in script.read_text()


@pytest.mark.parametrize("distribution", ["N(0,1)", "N(0.5,5)", "U(0,1)"])
def test_every_way_that_converges_comes_to_the_same_solution(tool, distribution):
    systems = tool("systems")
    system = systems.System(8, 200, distribution)
    expected = torch.linalg.pinv(system.s.T @ system.s / 200 + 0.01 * torch.eye(8, dtype=torch.float64)) @ system.v
    torch.testing.assert_close(system.x, expected)
    for name in [*systems.DIRECT, "Schulz, our start", "Schulz, published start", "conjugate gradient", "GMRES"]:
        assert system.error(systems.taken(name, system.m, system.v, 40)) < 1e-6, name
    for name in ("SOR 0.5", "SOR 1.5", "Neumann / LiSSA, scaled"):  # slowly, but nearer with every hundred steps
        near, nearer = (system.error(systems.taken(name, system.m, system.v, steps)) for steps in (50, 400))
        assert nearer < max(1e-12, 0.9 * near), name


def test_the_published_series_explodes_where_the_spectrum_exceeds_2(tool):
    systems = tool("systems")
    system = systems.System(8, 200, "N(0,5)")
    assert float(torch.linalg.eigvalsh(system.m)[-1]) > 2
    assert system.error(systems.taken("Neumann / LiSSA, published", system.m, system.v, 20)) > 1e6


def test_datainf_is_the_mean_of_rank_one_inverses(tool):
    systems = tool("systems")
    system, eye = systems.System(4, 6, "N(0,1)"), torch.eye(4, dtype=torch.float64)
    each = [torch.linalg.inv(torch.outer(s, s) + 0.01 * eye) @ system.v for s in system.s]
    torch.testing.assert_close(systems.datainf(system), sum(each) / 6)


def test_schulz_reaches_the_goal_in_steps_that_the_row_counts(tool):
    study = tool("solver_study")
    system = study.System(8, 200, "N(0,1)")
    row = study.schulz_row(system, "Schulz, our start", torch.float64)
    errors = [
        system.error(study.taken("Schulz, our start", system.m, system.v, row["steps"] - back)) for back in (0, 1)
    ]
    assert errors[0] <= 1e-10 < errors[1] and row["steps"] < 12
    assert study.schulz_row(system, "Schulz, published start", torch.float64)["steps"] > row["steps"]


@pytest.mark.parametrize("distribution", ["N(0,5)", "U(0,1)"])
def test_refined_in_float32_reaches_what_float32_alone_does_not(tool, distribution):
    study = tool("solver_study")
    system = study.System(96, 60, distribution)
    own, refined = (study.schulz_row(system, start, torch.float32) for start in ("Schulz, our start", study.REFINED))
    assert own["least"] > 1e-5 > refined["least"] and own["steps"] is None and refined["steps"] <= 25
    m = system.m.float().double()
    assert own["rounding"] == pytest.approx(system.error(torch.linalg.solve(m, system.v.float().double())), rel=0.1)


def test_spreads_are_over_distributions_and_an_exploded_curve_is_infinite(tool):
    study = tool("solver_study")
    at = [(30, "a", 2, 0.5), (30, "b", 1, 2e6), (60, "a", 1, 9.0), (60, "a", 2, 0.1), (60, "b", 2, 0.2)]
    rows = [{"d": 8, "N": n, "distribution": d, "way": "w", "step": step, "error": e} for n, d, step, e in at]
    (found,) = study.spreads(rows, 2)
    assert (found["N = 30"], found["N = 60"]) == ("5.0e-01 to inf", "1.0e-01 to 2.0e-01")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SMALL)
def test_recipes_of_studies_run_small(recipe, tmp_path):
    words, files = SMALL[recipe]
    command = ["bash", str(ROOT / f"recipes/{recipe}/run.sh"), str(tmp_path / "out"), *words.split()]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert all((tmp_path / "out" / name).stat().st_size for name in files)
    for path in (tmp_path / "out").glob("*.csv"):
        assert len(list(csv.DictReader(path.read_text().splitlines()))) > 0
