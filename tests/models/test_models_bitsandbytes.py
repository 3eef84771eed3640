"""bitsandbytes itself, where it is installed: adapters on its packed layers score as on the weights that these hold."""

import json
import shutil

import numpy as np
import pytest
from tiny_huggingface import save_language
from tiny_models import tiny_language, wake_lora
from transformers import LlamaForCausalLM

from vlmsel import cli
from vlmsel.models.config import ALL_LINEAR, LoraSpec
from vlmsel.models.lora import attach_lora
from vlmsel.models.open import open_subject
from vlmsel.scoring.table import read_table

bits = pytest.importorskip("bitsandbytes", minversion="0.50")
SCORERS = ("TracIn", "HyperINF", "DataInf")


def said(number):
    turns = [("human", f"What comes after {number}?"), ("gpt", f"It is {number + 1}.")]
    return {"source": "sums", "conversations": [{"from": who, "value": text} for who, text in turns]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A Llama, adapters of it that are no longer fresh, a pool and a target file."""
    folder = tmp_path_factory.mktemp("packed")
    save_language(folder / "llama", max_position_embeddings=256)
    save_adapters(folder, "llama")
    (folder / "pool.json").write_text(json.dumps([said(number) for number in range(24)]))
    (folder / "target.json").write_text(json.dumps([said(20), said(30)]))
    return folder


def save_adapters(folder, base):
    adapted = attach_lora(tiny_language(), LoraSpec(r=4, alpha=8))
    wake_lora(adapted)
    adapted.peft_config["default"].base_model_name_or_path = str(folder / base)
    adapted.save_pretrained(folder / f"{base}-adapters")


def held(layer):
    """Return the weights that a packed layer stands for."""
    weight = layer.weight
    if isinstance(layer, bits.nn.Linear4bit):
        return bits.functional.dequantize_4bit(weight.data, weight.quant_state).float()
    return weight.data.float() * weight.SCB[:, None] / 127


def scores(folder, model, dtype, out):
    words = ["score", "--model", folder / model, "--pool", folder / "pool.json", "--device", "cpu", "--dtype", dtype]
    words += ["--targets.sums", folder / "target.json", "--scorers", f"[{','.join(SCORERS)}]", "--out", out]
    assert cli.main(list(map(str, words))) == 0
    table, _ = read_table(out / "scores.parquet")
    return {name: table[f"{name}/sums"] for name in SCORERS}, table["loss"]


@pytest.mark.parametrize("dtype", ["4bit", "8bit"])
def test_scores_are_those_on_the_weights_that_are_held(home, tmp_path, dtype):
    packed = open_subject(str(home / "llama-adapters"), "cpu", dtype)
    layers = {name: one for name, one in packed.named_modules() if "bitsandbytes" in type(one).__module__}
    layers = {name.partition("layers.")[2]: held(one) for name, one in layers.items() if hasattr(one, "weight")}
    assert len(layers) == 2 * len(ALL_LINEAR)
    model, lost = LlamaForCausalLM.from_pretrained(home / "llama"), 0.0
    for name, weight in layers.items():
        layer = model.model.layers.get_submodule(name.removesuffix(".base_layer"))
        lost = max(lost, (layer.weight - weight).abs().max().item())
        layer.weight.data = weight
    assert lost > 0.001
    model.save_pretrained(home / dtype)
    for file in (home / "llama").glob("token*"):
        shutil.copy(file, home / dtype)
    save_adapters(home, dtype)
    found, losses = scores(home, "llama-adapters", dtype, tmp_path / "packed")
    expected, twins = scores(home, f"{dtype}-adapters", "bfloat16", tmp_path / "plain")
    # 8bit rounds what goes into a layer as well: 1 % of the losses, 8 % of TracIn's scores
    np.testing.assert_allclose(losses, twins, rtol=0.03 if dtype == "8bit" else 1e-6)
    for name in SCORERS:
        apart = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert apart < (0.15 if dtype == "8bit" else 1e-6), name
