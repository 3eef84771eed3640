"""The recipes' scripts as they stand, at a minute size: a `vlmsel` in front of the real one makes every step small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_easy_vqa import archive
from tiny_huggingface import save_classifier, save_language
from tiny_vlms import save_vlm

from vlmsel import runs
from vlmsel.scoring.table import read_table

ROOT = Path(__file__).parents[2]
FRONT = """#!{python}
import sys
from vlmsel import cli
sys.exit(cli.main(sys.argv[1:] + {more}.get(sys.argv[1], "").split()))
"""
ONE = "--settings.max_steps 1"
pytestmark = pytest.mark.slow


@pytest.fixture
def script(tmp_path):
    """Run a script in `tmp_path`, its commands with further options."""

    def run(name, *words, **more):
        front = tmp_path / "bin/vlmsel"
        front.parent.mkdir()
        front.write_text(FRONT.format(python=sys.executable, more=more))
        front.chmod(0o755)
        path = f"{front.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = ["bash", str(ROOT / f"recipes/{name}"), *map(str, words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500, env=env, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(one)}\n" for one in records))


def write_table(path, names, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [*([names] if names else []), *rows]))


def write_glue(folder):
    """Sixteen labelled texts of each set, in the official columns."""
    for part in ("train", "dev"):
        rows = range(16)
        write_table(folder / f"SST-2/{part}.tsv", ["sentence", "label"], [(f"film {n}", n % 2) for n in rows])
        write_table(folder / f"CoLA/{part}.tsv", None, [("x", n % 2, "*", f"saw {n}") for n in rows])
        names = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
        write_table(folder / f"MRPC/{part}.tsv", names, [(n % 2, n, n, f"one {n}", f"two {n}") for n in rows])
        names, labels = ["index", "sentence1", "sentence2", "label"], ("entailment", "not_entailment")
        write_table(folder / f"RTE/{part}.tsv", names, [(n, f"one {n}", f"two {n}", labels[n % 2]) for n in rows])


def write_llava(folder, names):
    """Files of a few questions about one picture each."""
    (folder / "images").mkdir(parents=True)
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{n}.jpg")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cube."}]
    records = [{"id": n, "image": f"{n}.jpg", "conversations": turns} for n in range(6)]
    for name in names:
        (folder / name).write_text(json.dumps(records))


def test_glue_mislabel(script, tmp_path):
    write_glue(tmp_path / "glue")
    save_classifier(tmp_path / "bert")
    more = "--train_samples 16 --validation_samples 8 --training.epochs 1 --rank_by TracIn --scorers [Random,TracIn]"
    script("glue_mislabel/run.sh", "glue", "bert", "out", 1, detect=more)
    others = ("r16_cola", "r64_mrpc", "head_sst2", "folds_mrpc", "folds_sst2_clean", "rank4_sst2")
    for name in ("sst2", "cola", "mrpc", "rte", *(f"rank{r}_cola" for r in (1, 2, 4, 8)), *others):
        assert (tmp_path / f"out/{name}/seed0/scores.parquet").is_file(), name
    assert not (tmp_path / "out/qnli").exists()  # its files are not there


@pytest.mark.parametrize("recipe", ["run", "maths"])
def test_identification(recipe, script, tmp_path):
    save_language(tmp_path / "llama")
    for part in ("train", "test"):
        names = [("grammars", "Vowels", "w*w."), ("math_with_reason", "Sum", "Reason: 1 + 2. Answer: 3")]
        for name, prompt, answer in names:
            text = {"prompt": f"{prompt} -> ", "text": f"{prompt} -> {answer}</s>"}
            lines = [{**text, "variation": kind} for kind in ("sums", "others") for _ in range(12)]
            write_lines(tmp_path / f"study/{name}_{part}.jsonl", lines)
    base = tmp_path / "out/data/sentences.json"
    base.parent.mkdir(parents=True)
    base.write_text(
        json.dumps([{"id": 0, "conversations": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]}])
    )
    small = {"tune": f"{ONE} --settings.workers 0", "score": "--scorers [TracIn,HyperINF]"}
    said = script(f"identification/{recipe}.sh", "llama", "study", "out", **small)
    tables = [tmp_path / "out/score"] if recipe == "run" else [*(tmp_path / "out").glob("*_reasons/score")]
    assert len(tables) == (1 if recipe == "run" else 2) and said.count("| HyperINF |") == len(tables)
    assert all(set(runs.read_json(one / "identification.json")) == {"TracIn", "HyperINF"} for one in tables)


def test_hf_vlm(script, tmp_path):
    save_vlm(tmp_path / "model", "qwen2_5_vl")
    write_llava(tmp_path, ["pool.json", "target.json"])
    train = (
        f"{ONE} --settings.precision float32 --settings.batch_size 2 --settings.gradient_accumulation 1 --device cpu"
    )
    small = {"tune": train, "warmup": f"{train} --least 2", "score": "--dtype float32 --device cpu"}
    script("hf_vlm/run.sh", "model", "pool.json", "images", "target.json", "out", **small)
    assert len(runs.read_json(tmp_path / "out/chosen.json")) == 1
    assert (tmp_path / "out/tune/model/adapter_model.safetensors").is_file()


def test_llava(script, tmp_path):
    names = ["blip_laion_cc_sbu_558k.json", "llava_v1_5_mix665k.json", "vqav2_val.json", "textvqa_val.json"]
    write_llava(tmp_path, names)
    (tmp_path / "LLaVA-Pretrain").mkdir()
    for link, folder in (("LLaVA-Pretrain/images", "../images"), ("LLaVA-Finetune", "images"), ("val2014", "images")):
        (tmp_path / link).symlink_to(folder)
    for kind in ("random", "popular", "adversarial"):
        asked = {"question_id": 1, "image": "0.jpg", "text": "Is there a cube?", "label": "yes"}
        write_lines(tmp_path / f"coco_pope_{kind}.json", [asked])
    train = f"{ONE} --settings.batch_size 2 --settings.gradient_accumulation 1 --settings.workers 0"
    small = {
        "align": f"--model tiny {train}",
        "tune": f"{train} --settings.precision float32",
        "select": "--fraction 0.5",
    }
    small["score"] = "--workers 0 --dtype float32 --fit_samples 4"
    script("llava/run.sh", **small, evaluate="--dtype float32")
    assert len(runs.read_json(tmp_path / "runs/llava/selected.json")) == 3
    assert set(read_table(tmp_path / "runs/llava/score/scores.parquet")[0]) > {"HyperINF/vqav2", "TracIn/textvqa"}
    assert (tmp_path / "runs/llava/pope/predictions.jsonl").read_text().count("\n") == 3


def test_validate(script, tmp_path):
    write_glue(tmp_path / "glue")
    save_classifier(tmp_path / "bert")
    script("validate/run.sh", "bert", "glue/SST-2", "out", 12, 4, 12, 2, 1, 1, detect="--validation_samples 8")
    for run in ("sst2", "vlm"):
        for study in ("lds", "duel", "deciles", "groups"):
            found = (tmp_path / f"out/{run}-{study}/table.md").read_text()
            assert "| HyperINF.10 |" in found and "| Random |" in found, (run, study)


def choices(count):
    named = {"activity_label": "Sums", "endings": list("abcd"), "label": 1}
    return [{"ind": n, "ctx": f"{n} and", **named} for n in range(count)]


def test_validate_text(script, tmp_path):
    save_language(tmp_path / "llama")
    write_lines(tmp_path / "questions.jsonl", choices(24))
    small = {"warmup": f"{ONE} --least 4"}
    script("validate/text.sh", "questions.jsonl", "llama", "out", 16, 4, 2, 1, **small)
    assert "| HyperINF.10 |" in (tmp_path / "out/text-lds/table.md").read_text()


def test_llm_selection(script, tmp_path):
    save_language(tmp_path / "llama")
    write_lines(tmp_path / "questions.jsonl", choices(24))
    sizes = ["--pool", 12, "--target", 4, "--test", 8, "--fractions", 0.25, ONE.split()[0], 1]
    script("llm_selection/run.sh", "questions.jsonl", "llama", "out", "dense", *sizes)
    assert "Random of equal tokens" in (tmp_path / "out/table.md").read_text()


def test_frontier(script, tmp_path):
    words = ["--seeds", 5, "--rounds", 1, "--pool", 20, "--target", 2, "--ways", "last layer", "BM25"]
    script("frontier/run.sh", "out", *words)
    assert (tmp_path / "out/frontier.png").stat().st_size


def test_easy_vqa(script, tmp_path):
    archive(tmp_path / "easy.tar.gz")
    convert = [sys.executable, ROOT / "tools/convert_easy_vqa.py", "easy.tar.gz", "--out", "out/data0", "--pool", "20"]
    subprocess.run([*convert, "--test", "4"], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    small = {"align": ONE, "tune": ONE, "score": "--fit_samples 8"}
    said = script("easy_vqa/run.sh", "easy.tar.gz", "out", 1, **small)
    assert all(f"{name} " in said for name in ("Random", "HyperINF", "full_pool", "not tuned"))
