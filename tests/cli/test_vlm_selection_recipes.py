"""The papers' selections on the embedded world, at a minute size: three parts of one world's pool."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vlmsel import runs
from vlmsel.studies.demo import CHOSEN, FULL, SCORERS

ROOT = Path(__file__).parents[2]
SIZES = (
    "--settings.pool 40 --settings.target 2 --settings.questions 3 --settings.fit_samples 8 --settings.tune_epochs 1"
)


@pytest.mark.slow  # thirty small models each
@pytest.mark.parametrize(("recipe", "parts"), [("vlm_selection", "05 20 40"), ("vlm_selection_unaligned", "20 40 60")])
def test_every_part_has_its_table(recipe, parts, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = ["bash", str(ROOT / f"recipes/{recipe}/run.sh"), str(tmp_path), *SIZES.split()]
    subprocess.run(command, check=True, capture_output=True, timeout=1500, env=env)
    tables = {part: runs.read_json(tmp_path / part / "results.json") for part in parts.split()}
    for part, found in tables.items():
        assert {*SCORERS, CHOSEN, FULL} < set(found["percent"])
        assert found["settings"]["fraction"] == int(part) / 100
        chosen = runs.read_json(tmp_path / part / "seed0/selected/HyperINF.json.manifest.json")["uids"]
        assert len(chosen) == 40 * int(part) // 100
    assert len({str(found["percent"][FULL]) for found in tables.values()}) == 1  # one model, taken over
