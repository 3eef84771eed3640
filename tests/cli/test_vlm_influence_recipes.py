"""Wrong answers and identification with pictures: what their studies draw, and both recipes at a minute size."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlmsel import runs
from vlmsel.studies.study import Seed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch):
    """Load the study of a recipe."""
    monkeypatch.syspath_prepend(str(ROOT))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / f"recipes/{name}/study.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where its dataclass looks itself up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("name, option", [("vlm_mislabel", "--flip"), ("vlm_identification", "--epochs")])
def test_other_settings_do_not_go_on_from_a_study(recipe, name, option, tmp_path, monkeypatch, capsys):
    study, ran = recipe(name), []
    kind = study.MislabelledAnswers if name == "vlm_mislabel" else study.Identification
    monkeypatch.setattr(kind, "run", lambda *words: ran.append(words) or sys.exit())
    for words in ([option, "0.5"], [option, "0.5", "--seeds", "7"], [option, "0.25"]):
        monkeypatch.setattr(sys, "argv", ["study.py", "--out", str(tmp_path / "out"), *words])
        with pytest.raises(SystemExit):
            study.main()
        (tmp_path / "out/seed0").mkdir(exist_ok=True)
        (tmp_path / "out/seed0/metrics.json").write_text("{}")
    assert len(ran) == 2 and f"(there: {option[2:]}: 0.5; now: {option[2:]}: 0.25)" in capsys.readouterr().err


def said(path, turn=1):
    return [record["conversations"][turn]["value"] for record in runs.read_json(path)]


def test_an_exact_share_of_the_answers_is_wrong_and_nothing_else_changes(recipe, tmp_path):
    study = recipe("vlm_mislabel")
    clean, spoilt = (
        study.MislabelledAnswers(0, 30, 6, flip, 1).subset(Seed(3, tmp_path / str(flip)), study.ARM)
        for flip in (0, 0.2)
    )
    pairs = zip(said(clean / "pool.json"), said(spoilt / "pool.json"), strict=True)
    differ = [uid for uid, (right, given) in enumerate(pairs) if right != given]
    assert differ == runs.read_json(spoilt / "flipped.json") and len(differ) == 6
    assert said(clean / "pool.json", 0) == said(spoilt / "pool.json", 0)
    assert said(clean / "right.json") == said(spoilt / "right.json")
    right, wrong = (said(spoilt / f"{part}.json") for part in ("right", "wrong"))
    assert len(right) == 6 and all(one != other for one, other in zip(right, wrong, strict=True))


def test_subjects_are_alone_in_their_pictures_and_styles_are_seen(recipe, tmp_path):
    study = recipe("vlm_identification")
    made = study.Identification(20, 10, 1)
    folders = {arm: made.subset(Seed(0, tmp_path), arm) for arm in study.ARMS}
    records = {arm: runs.read_json(folder / "train.json") for arm, folder in folders.items()}
    assert len({one["source"] for one in records["subject"]}) == 10
    for one in records["subject"]:
        assert one["conversations"][1]["value"].split(" at the ")[0].split(maxsplit=2)[2] == one["source"]
    named, plain = ([one["conversations"][1]["value"] for one in records[arm]] for arm in (study.NAMED, study.STYLE))
    assert all(text.startswith(f"{one['source']}: a ") for text, one in zip(named, records[study.NAMED], strict=True))
    assert all(text.startswith("a ") for text in plain)
    for one in records[study.STYLE]:
        pixels = np.asarray(Image.open(folders[study.STYLE] / "images" / one["image"]))
        grey = (pixels == pixels[..., :1]).all()
        coarse = (pixels == np.kron(pixels[::4, ::4], np.ones((4, 4, 1)))).all()
        assert (grey, coarse) == {"cartoon": (False, False), "pixel art": (False, True), "line sketch": (True, False)}[
            one["source"]
        ]


def test_the_table_of_identification_is_paired_by_seed(recipe):
    rows = recipe("vlm_identification").table(
        [{"TracIn": {"auc": 0.5, "recall": r}, "Mine": {"auc": 0.7, "recall": r + 0.1}} for r in (0.2, 0.6)]
    )
    assert rows[2] == ["Mine", "0.700 ± 0.000", "0.500 ± 2.541", "+0.100 ± 0.000"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes", "files"),
    [
        ("vlm_mislabel", "--base 20 --pool 30 --validation 6", ["table.md", "detection.png", "results.json"]),
        ("vlm_identification", "--train 20 --test 10", ["subject.md", "style.md", "style, named.md"]),
    ],
)
def test_recipes_run_small(name, sizes, files, tmp_path):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / f"recipes/{name}/run.sh"), str(tmp_path), "--seeds", "7", "--epochs", "1"]
    env = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *sizes.split()], check=True, capture_output=True, timeout=600, env=env)
    assert all((tmp_path / file).stat().st_size for file in files)
    text = (tmp_path / files[0]).read_text()
    assert all(f"| {scorer} |" in text for scorer in ("TracIn", "HyperINF.10"))
