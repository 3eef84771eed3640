"""LoRA: where it lands, what it scales by, and that merging changes nothing."""

import json
from dataclasses import asdict

import peft
import pytest
import torch
from tiny_models import random_batch, sample_losses, tiny_language, tiny_vlm, wake_lora
from transformers import GPT2Config, GPT2LMHeadModel

from vlmsel.models.config import ALL_LINEAR, LoraSpec, VLMConfig
from vlmsel.models.lora import adapted_modules, attach_lora, lora_parameters, merge_lora, quiet_peft


def test_only_targets_are_adapted_and_only_adapters_are_trainable():
    model = attach_lora(tiny_language(), LoraSpec(r=4, alpha=8, targets=("q_proj", "v_proj")))
    names = adapted_modules(model)
    assert len(names) == 4 and {name.rpartition(".")[2] for name in names} == {"q_proj", "v_proj"}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(lora_parameters(model)) and len(trainable) == 8


@pytest.mark.parametrize(("rslora", "scale"), [(True, 4.0), (False, 2.0)])
def test_scale_is_the_one_peft_applies(rslora, scale):
    spec = LoraSpec(r=4, alpha=8, rslora=rslora, targets=("q_proj",))
    model = attach_lora(tiny_language(), spec)
    layer = model.get_submodule(adapted_modules(model)[0])
    assert spec.scale == layer.scaling["default"] == scale


def test_fresh_adapters_change_nothing_and_seeds_differ():
    batch = random_batch(images_per_sample=[0, 0])
    before = sample_losses(tiny_language(), batch)
    state = torch.random.get_rng_state()
    models = [attach_lora(tiny_language(), LoraSpec(r=4, alpha=8), seed) for seed in (0, 0, 1)]
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(sample_losses(models[0], batch), before)
    first, again, other = (next(iter(lora_parameters(m).values())) for m in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_unknown_targets_are_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"called query, value; .*'down_proj'.*'v_proj'"):
        attach_lora(tiny_language(), LoraSpec(targets=("q_proj", "query", "value")))
    with pytest.raises(ValueError, match="no linear module is called embed_tokens"):
        attach_lora(tiny_language(), LoraSpec(targets=("embed_tokens",)))
    with pytest.raises(ValueError, match="rank r must be at least 1, got 0"):
        LoraSpec(r=0)
    with pytest.raises(ValueError, match="at least one target"):
        LoraSpec(targets=())


def test_all_linear_is_what_peft_adapts_by_it(tmp_path):
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    for make in (tiny_language, lambda: GPT2LMHeadModel(config)):
        theirs = peft.LoraConfig(
            task_type="CAUSAL_LM", target_modules="all-linear", fan_in_fan_out=make is not tiny_language
        )
        with quiet_peft():
            twin = peft.get_peft_model(make(), theirs)
        found = adapted_modules(attach_lora(make(), LoraSpec(r=2, alpha=4, targets="all-linear")))
        assert found == adapted_modules(twin) != []
    model = tiny_vlm(lora=False)
    model.attach_lora(LoraSpec(r=2, alpha=4, targets="all-linear"))
    assert model.vlm_config.lora.targets == tuple(sorted(ALL_LINEAR))
    assert VLMConfig.from_json(json.loads(json.dumps(asdict(model.vlm_config)))) == model.vlm_config
    with pytest.raises(ValueError, match="targets are a list of modules' names, or all-linear; got 'q_proj'"):
        LoraSpec(targets="q_proj")


def test_defaults_are_pefts():
    own, theirs = LoraSpec(), peft.LoraConfig()
    assert (own.rslora, own.dora, own.dropout) == (theirs.use_rslora, theirs.use_dora, theirs.lora_dropout)


def test_a_second_attachment_is_refused():
    model = tiny_vlm()
    with pytest.raises(ValueError, match="has LoRA adapters already"):
        model.attach_lora(LoraSpec())


def test_adapters_join_in_the_models_mode():
    model = tiny_vlm(lora=False)
    model.attach_lora(LoraSpec(r=2, alpha=4, dropout=0.5))
    assert not any(module.training for module in model.modules()) and model.vlm_config.lora.dropout == 0.5


def test_merging_keeps_the_losses():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    batch = random_batch(model)
    before = sample_losses(model, batch)
    model.merge_lora()
    torch.testing.assert_close(sample_losses(model, batch), before, rtol=0, atol=1e-12)
    assert adapted_modules(model) == [] and model.vlm_config.lora is None and model.vlm_config.language_trained
    with pytest.raises(ValueError, match="no LoRA adapters to merge"):
        model.merge_lora()


def test_merging_half_precision_rounds_once():
    model = attach_lora(tiny_language().bfloat16(), LoraSpec(r=4, alpha=8, targets=("q_proj",)))
    wake_lora(model)
    layer = model.get_submodule(adapted_modules(model)[0])
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    merged = merge_lora(model)
    weight = merged.get_submodule("model.layers.0.self_attn.q_proj").weight
    assert weight.dtype == torch.bfloat16 and torch.equal(weight, exact.bfloat16())


def test_gpt2_is_adapted_too():
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=300, n_positions=64)
    model = attach_lora(GPT2LMHeadModel(config), LoraSpec(r=2, alpha=4, targets=("c_attn",)))
    batch = random_batch(images_per_sample=[0, 0])
    sample_losses(model, batch).sum().backward()
    assert len(adapted_modules(model)) == 2
    assert all(p.grad is not None for p in lora_parameters(model).values())
