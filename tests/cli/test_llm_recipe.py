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


def write(task, folder):
    """Write 24 questions in a task's official form; return the words that name them."""
    rows = range(24)
    choices = [[f"{n}{c}" for c in "abcd"] for n in rows]
    path, more = folder / ("questions.txt" if task == "logiqa" else "questions.jsonl"), []
    if task == "hellaswag":
        records = [
            {"ind": n, "activity_label": "Sums", "ctx": f"{n} and", "endings": choices[n], "label": n % 4} for n in rows
        ]
    elif task == "qasc":
        records = [{"query": f"{n} and", "cands": choices[n], "answer": choices[n][n % 4]} for n in rows]
    elif task == "piqa":
        records = [{"goal": f"{n} and", "sol1": choices[n][0], "sol2": choices[n][1]} for n in rows]
        (folder / "labels.lst").write_text("".join(f"{n % 2}\n" for n in rows))
        more = ["--labels", folder / "labels.lst"]
    lines = [json.dumps(one) for one in records] if task != "logiqa" else []
    for n in rows if task == "logiqa" else ():
        options = [f"{letter}.{text}" for letter, text in zip("ABCD", choices[n], strict=True)]
        lines += ["", "abcd"[n % 4], f"It is {n}.", "What is it?", *options]
    path.write_text("\n".join(lines) + "\n")
    return [path, folder / "llama", "--task", task, *more]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [("hellaswag", "dense"), ("hellaswag", "lora"), ("qasc", "dense"), ("piqa", "dense"), ("logiqa", "dense")],
)
def test_a_small_seed_gives_a_table(task, method, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    save_language(tmp_path / "llama")
    words = [*write(task, tmp_path), "--out", tmp_path / "out", "--fractions", "0.25"]
    sizes = ["--pool", 12, "--target", 4, "--test", 8, "--settings.max_steps", 1]
    study(*words, *sizes, "--method", method)
    assert read_table(tmp_path / "out/seed0/score/scores.parquet")[1]["blocks"] == BLOCKS[method]
    module = study(*words, "--table")
    found = runs.read_json(tmp_path / "out/results.json")
    early = " not warmed up" if method == "lora" else "none"  # there are no adapters yet
    models = {"untuned", "full_pool", *(f"{row}-25" for row in module.ROWS if not row.endswith(early))}
    assert set(found["log_likelihood"]) == models
    assert set(found["percent"]) == {*models, module.MAJORITY}
    assert all(len(row[task]) == 1 for row in found["percent"].values())
    assert len(runs.read_json(tmp_path / "out/seed0/selected/HyperINF-25.json")) == 3
    table = (tmp_path / "out/table.md").read_text()
    assert "| HyperINF |" in table and "25 % | minus Random |" in table
