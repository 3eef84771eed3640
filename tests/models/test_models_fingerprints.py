"""What tells one model from another: every weight of it, how it reads, and nothing else."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_batch, tiny_language, tiny_tokenizer, tiny_vlm, wake_lora

from vlmsel.models.assembly import load
from vlmsel.models.fingerprints import tokenizer_settings, weights_digest


@pytest.fixture
def model():
    return tiny_vlm()


def test_a_digest_follows_from_content_alone(model):
    digest = model.digest()
    assert tiny_vlm().digest() == digest
    model.tokenizer("asked to be cut", truncation=True, max_length=4, padding="max_length")
    model.trained("projector+lora")
    model.losses(random_batch(model)).sum().backward()
    assert model.digest() == digest


def turned(model):
    for name, parameter in model.named_parameters():
        if "q_proj.base_layer" in name:
            parameter.data.mul_(-2)


def moved(model):
    for parameter in model.parameters():
        parameter.data.add_(0.0019)


def one_weight(model):
    weight = model.vision.visual.conv1.weight.data.flatten()
    weight[7] = torch.nextafter(weight[7], torch.tensor(9.0))


def reordered(model):
    weight = model.language_model.get_input_embeddings().weight.data
    weight[[3, 4]] = weight[[4, 3]]


def another_template(model):
    model.vlm_config = replace(model.vlm_config, template="pure")


def another_scale(model):
    model.vlm_config = replace(model.vlm_config, lora=replace(model.vlm_config.lora, alpha=9))


def another_tokenizer(model):
    model.tokenizer = copy.deepcopy(tiny_tokenizer())
    model.tokenizer.add_tokens(["more"])


CHANGES = [turned, moved, one_weight, reordered, wake_lora, another_template, another_scale, another_tokenizer]


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_shows_in_the_digest(model, change):
    before = model.digest()
    change(model)
    assert model.digest() != before


def test_a_dtype_is_told_apart_unless_weights_are_rounded():
    full, half = tiny_language().state_dict(), tiny_language().bfloat16().state_dict()
    assert weights_digest(full) != weights_digest(half)
    assert weights_digest(full, dtype=torch.bfloat16) == weights_digest(half, dtype=torch.bfloat16)
    assert weights_digest({"a": torch.tensor(1.0)}) != weights_digest({"b": torch.tensor(1.0)})


def test_a_tokenizer_without_rules_of_its_own_is_known_by_its_words():
    class Words:
        special_tokens_map = {}

        def get_vocab(self):
            return {"a": 0}

    assert tokenizer_settings(Words()) == ([("a", 0), ("padding", None), ("truncation", None)], {})
    assert tokenizer_settings(None) is None


@pytest.mark.parametrize("part", ["clip", "llama"])
def test_a_saved_model_notices_weights_that_changed_and_one_without_fingerprints_does_not(tmp_path, part):
    tiny_vlm(tmp_path / "backbones").save(tmp_path / "model")
    file = next((tmp_path / "backbones" / part).glob("*.safetensors"))
    state = load_file(file)
    name = "visual.conv1.weight" if part == "clip" else "model.layers.0.self_attn.q_proj.weight"
    load(tmp_path / "model", dtype=torch.bfloat16)
    save_file({**state, name: -2 * state[name]}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not the one this model was trained with"):
        load(tmp_path / "model", dtype=torch.bfloat16)
    config = tmp_path / "model/vlmsel_config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps({**content, "fingerprints": {"vision": "of an earlier version"}}))
    load(tmp_path / "model")
