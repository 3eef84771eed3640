"""The named models; the 7B one by its shapes alone."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_models import llava_7b, sample_losses

from vlmsel.models import config
from vlmsel.models.assembly import build
from vlmsel.models.config import ALL_LINEAR, LoraSpec, VLMConfig
from vlmsel.models.lora import adapted_modules, lora_parameters
from vlmsel.models.presets import PRESETS

CASES = json.loads((Path(__file__).parents[1] / "cases/structure.json").read_text())["parameter_counts"]


def count(parameters):
    return sum(p.numel() for p in parameters)


def test_llava_7b_has_the_papers_numbers_of_parameters():
    model = llava_7b(PRESETS["llava-7b"])
    assert (model.vision.patches, model.vision.width, model.vision.image_size) == (576, 1024, 336)
    assert count(model.projector.parameters()) == CASES["projector_1024_4096"] == 20_979_712
    assert count(lora_parameters(model).values()) == CASES["lora_hyperinf_r64_qv_llama2_7b"] == 33_554_432
    lora = PRESETS["llava-7b"].lora
    assert (lora.r, lora.alpha, lora.rslora, lora.targets) == (64, 128, True, ("q_proj", "v_proj"))
    assert lora.scale == CASES["lora_scale_hyperinf_rslora"] == 16.0
    names = adapted_modules(model)
    assert len(names) == 64 and all(".q_proj" in name or ".v_proj" in name for name in names)
    base = count(model.language_model.parameters()) - 33_554_432
    assert base == 6_738_415_616


def test_llava_7b_with_llavas_own_lora():
    lora = LoraSpec(r=128, alpha=256, rslora=False, targets=ALL_LINEAR, dropout=0.05)
    model = llava_7b(replace(PRESETS["llava-7b"], lora=lora))
    assert count(lora_parameters(model).values()) == CASES["lora_llava_r128_all_linear_llama2_7b"] == 319_815_680
    assert lora.scale == CASES["lora_scale_llava"] == 2.0


def test_settings_survive_json():
    for setting in PRESETS.values():
        assert VLMConfig.from_json(asdict(setting)) == setting


@pytest.mark.skipif(not (config.ASSETS / "llama" / "config.json").is_file(), reason="the tiny backbones are not built")
def test_tiny_stands_on_the_package_alone():
    model = build(PRESETS["tiny"])
    text = model.tokenizer("In: Is it red?\nOut: yes", return_tensors="pt")
    empty = torch.zeros(0, dtype=torch.long)
    batch = type("Batch", (), {})()
    batch.input_ids, batch.labels, batch.attention_mask = text.input_ids, text.input_ids, text.attention_mask
    batch.pixel_values, batch.image_index, batch.image_samples = None, empty, empty
    assert torch.isfinite(sample_losses(model, batch)).all()
    assert model.vision(torch.zeros(1, 3, model.vision.image_size, model.vision.image_size)).shape[1] == 36
