"""The study of language model selection, in small: a seed from questions to the table."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from tiny_huggingface import save_language

from vlmsel import runs
from vlmsel.scoring.table import read_table

FOLDER = Path(__file__).parents[2] / "recipes/llm_selection"
BLOCKS = {"dense": "last-block", "lora": "lora"}


def study(*words):
    spec = importlib.util.spec_from_file_location("study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["study"] = module  # where its dataclass looks itself up
    spec.loader.exec_module(module)
    sys.argv = ["study.py", *map(str, words)]
    module.main()
    return module


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense", "lora"])
def test_a_small_seed_gives_a_table(method, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    save_language(tmp_path / "llama")
    records = [
        {"ind": n, "activity_label": "Sums", "ctx": f"{n} and", "endings": [f"{n}{c}" for c in "abcd"], "label": n % 4}
        for n in range(24)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    words = [tmp_path / "questions.jsonl", tmp_path / "llama", "--out", tmp_path / "out", "--fractions", "0.25"]
    sizes = ["--pool", 12, "--target", 4, "--test", 8, "--settings.max_steps", 1]
    study(*words, *sizes, "--method", method)
    assert read_table(tmp_path / "out/seed0/score/scores.parquet")[1]["blocks"] == BLOCKS[method]
    module = study(*words, "--table")
    found = runs.read_json(tmp_path / "out/results.json")
    models = {"untuned", "full_pool", *(f"{scorer}-25" for scorer in module.ROWS)}
    assert set(found["log_likelihood"]) == models
    assert set(found["percent"]) == {*models, module.MAJORITY}
    assert all(len(row["hellaswag"]) == 1 for row in found["percent"].values())
    assert len(runs.read_json(tmp_path / "out/seed0/selected/HyperINF-25.json")) == 3
    table = (tmp_path / "out/table.md").read_text()
    assert "| HyperINF |" in table and "25 % | minus Random |" in table
