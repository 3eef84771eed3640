"""The commands on Hugging Face image-text models, as a user types them: the recipe, and what ends in one line."""

import json
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import peft
import pytest
from PIL import Image
from safetensors.torch import save_file
from tiny_huggingface import save_language
from tiny_vlms import save_vlm
from transformers import AutoModelForImageTextToText

from vlmsel import cli
from vlmsel.data import hub
from vlmsel.models.language import load_language
from vlmsel.models.lora import quiet_peft
from vlmsel.scoring.table import read_table

RECIPE = Path(__file__).parents[2] / "recipes/hf_vlm"
TEXT = ("--model", "tiny-text", "--scorers", "[TracIn]", "--device", "cpu")
SMALL = ("--settings.max_steps", "2", "--settings.precision", "float32", "--lora.r", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A pool with none, one and two pictures, shared ones among them, and a target file."""
    folder, random = tmp_path_factory.mktemp("home"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(3):
        pixels = random.integers(0, 256, (20 + 8 * i, 44 - 6 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")

    def record(i):
        images = [f"{(i + j) % 3}.png" for j in range(i % 3)]
        turns = [{"from": "human", "value": "<image>\n" * len(images) + f"What is {i % 5}?"}]
        turns.append({"from": "gpt", "value": ("Red.", "A cube, I think.", "No.")[i % 3]})
        return {"id": i, "conversations": turns, **({"image": images} if images else {})}

    for name, numbers in (("pool", range(12)), ("target", range(12, 16))):
        (folder / f"{name}.json").write_text(json.dumps([record(i) for i in numbers]))
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


@pytest.mark.parametrize("name", ["smolvlm", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_the_recipe_runs_on_tiny_models_of_the_same_classes(name, home, tmp_path, capsys):
    model = save_vlm(tmp_path / "model", name)
    pool, images = home / "pool.json", ("--images", home / "images")
    small = ("--settings.batch_size", 4, "--settings.gradient_accumulation", 2, *SMALL)
    warm = ("warmup", "--config", RECIPE / "warmup.yaml", "--model", model, "--pool", pool, *images, *small)
    assert run(*warm, "--least", 6, "--out", tmp_path / "warmup") == 0
    score = ("score", "--config", RECIPE / "score.yaml", "--model", tmp_path / "warmup", "--pool", pool, *images)
    single = ("--dtype", "float32", "--device", "cpu", "--targets.task", home / "target.json")
    assert run(*score, *single, "--out", tmp_path / "score") == 0
    table, about = read_table(tmp_path / "score/scores.parquet")
    assert about["blocks"] == "lora" and np.isfinite(table["HyperINF/task"]).all() and len(table["uid"]) == 12
    assert run(*score, *single, "--batch_size", 1, "--out", tmp_path / "singly") == 0
    singly, _ = read_table(tmp_path / "singly/scores.parquet")
    assert table["TracIn/task"] == pytest.approx(singly["TracIn/task"], rel=1e-3, abs=1e-9)
    select = ("select", "--scores", tmp_path / "score", "--pool", pool, "--fraction", 0.5)
    assert run(*select, "--out", tmp_path / "chosen.json") == 0
    tune = ("tune", "--config", RECIPE / "tune.yaml", "--model", model, "--data", tmp_path / "chosen.json", *images)
    assert run(*tune, *small, "--out", tmp_path / "tune") == 0
    assert "read with the model's own chat template" in capsys.readouterr().out
    card = (tmp_path / "tune/model/README.md").read_text()
    assert str(tmp_path / "chosen.json") in card and "Choice: " in card and "scorer" in card


@pytest.mark.slow
def test_choose_and_validate_take_such_a_model(home, tmp_path):
    model = save_vlm(tmp_path / "model", "llava")
    words = ("--model", model, "--pool", home / "pool.json", "--images", home / "images", "--device", "cpu")
    choose = ("choose", *words, "--targets.task", home / "target.json", "--fraction", 0.5, "--lora.r", 2)
    assert run(*choose, "--settings.max_steps", 1, "--settings.train", "lora", "--out", tmp_path / "choose") == 0
    validate = ("validate", "--run", tmp_path / "choose", "--fraction", 0.5, "--seeds", 1, "--draws", 1, "--epochs", 1)
    assert run(*validate, "--device", "cpu", "--out", tmp_path / "validate") == 0


def refused(*words, capsys):
    assert run(*words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    return lines[-1]


def test_a_hub_name_without_network_is_refused_within_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://192.0.2.1")  # an address that nobody has
    (tmp_path / "d.json").write_text("[]")
    start = time.monotonic()
    line = refused("tune", "--model", "owner/nothing", "--data", "d.json", "--out", "run", capsys=capsys)
    assert time.monotonic() - start < 5
    assert "owner/nothing: no such folder, and no model of this name can be loaded from the hub (the hub does" in line
    line = refused("score", *TEXT, "--pool", "owner/nothing", "--targets.a", "d.json", "--out", "run", capsys=capsys)
    assert line.startswith("error: owner/nothing: no such file, nor a data set that the hub gives (the hub does not")


def test_adapters_of_a_model_on_the_hub_are_refused_within_seconds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlmsel.models.hub.hub_answers", lambda: False)
    save_file({}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/nothing", "r": 2}))
    start = time.monotonic()
    (tmp_path / "d.json").write_text("[]")
    line = refused("tune", "--model", tmp_path, "--data", tmp_path / "d.json", "--out", tmp_path / "run", capsys=capsys)
    assert time.monotonic() - start < 5
    assert "adapter_config.json: base_model_name_or_path: owner/nothing: no such folder, and no model of this" in line


@pytest.mark.parametrize("kind", ["vlm", "text"])
def test_adapters_that_change_their_model_are_told_at_once_what_to_do(kind, home, tmp_path, capsys):
    if kind == "vlm":
        model = AutoModelForImageTextToText.from_pretrained(save_vlm(tmp_path / "model", "llava"))
    else:
        model = load_language(str(save_language(tmp_path / "model")))
    with quiet_peft():
        made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"))
    made.save_pretrained(tmp_path / "pissa")
    about = json.loads((tmp_path / "pissa/adapter_config.json").read_text())
    about["base_model_name_or_path"] = str(tmp_path / "model")
    (tmp_path / "pissa/adapter_config.json").write_text(json.dumps(about))
    images = ("--images", home / "images", "--device", "cpu", "--model", tmp_path / "pissa")
    tune = ("tune", *images, "--data", home / "pool.json", "--settings.train", "lora", "--out", tmp_path / "tune")
    score = (
        "score",
        *images,
        "--pool",
        home / "pool.json",
        "--targets.t",
        home / "target.json",
        "--out",
        tmp_path / "s",
    )
    for words in (tune, (*tune, "--lora.r", 2), score):
        line = refused(*words, capsys=capsys)
        assert line.startswith(f"error: {tmp_path}/pissa/adapter_config.json: adapters with init_lora_weights 'pissa' ")
        assert line.endswith("merge_and_unload) and give that")


def test_bad_models_end_in_one_line(home, tmp_path, capsys):
    files = ("--data", home / "pool.json", "--images", home / "images", "--settings.train", "lora", "--device", "cpu")

    def tuned(model):
        return refused("tune", "--model", model, *files, "--lora.r", 2, "--out", tmp_path / "run", capsys=capsys)

    model = save_vlm(tmp_path / "model", "llava")
    (model / "chat_template.jinja").write_text("{% if %}")
    assert "the chat template cannot be used" in tuned(model)
    (model / "chat_template.jinja").unlink()
    assert "the processor has no chat template; name one with --template, such as vicuna_v1" in tuned(model)
    (model / "processor_config.json").unlink()
    assert f"{model}: no image processor (processor_config.json, preprocessor_config.json); copy it" in tuned(model)
