"""LoRA layers run as one map give the adapters' own gradients, leave no trace, and step aside where they must."""

import peft
import pytest
import torch
from naive_gradients import loop_gradients
from tiny_models import tiny_language
from torch import nn

from vlmsel.gradients import capture, lora_merge, per_sample_gradients, select_blocks
from vlmsel.models.config import ALL_LINEAR, LoraSpec
from vlmsel.models.lora import attach_lora, quiet_peft

IDS = torch.randint(3, 250, (4, 9), generator=torch.Generator().manual_seed(0))


def adapted(dtype=torch.float64, **settings):
    model = attach_lora(tiny_language(), LoraSpec(r=3, alpha=7, targets=ALL_LINEAR, **settings))
    return wake(model.to(dtype).eval())


def wake(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or "magnitude" in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def losses(model, ids):
    return model(input_ids=ids, use_cache=False).logits.logsumexp(2).square().mean(1)


def assert_twins(model, blocks, tolerance=1e-10):
    found = per_sample_gradients(model, IDS, losses, blocks)
    expected = loop_gradients(model, [row[None] for row in IDS], losses, blocks)
    for name, gradients in expected.items():
        assert gradients.any(), name
        assert (found[name] - gradients).norm() <= tolerance * gradients.norm(), name


def adapters_of(model, blocks):
    with capture(model, blocks, len(IDS)) as captured:
        return captured.adapters


def test_gradients_are_those_through_the_adapters():
    model = adapted()
    blocks = select_blocks(model, "lora")
    assert len(adapters_of(model, blocks)) * 2 == len(blocks) > 0
    assert_twins(model, blocks)


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_one_of_the_two_matrices_alone(part):
    model = adapted()
    assert_twins(model, select_blocks(model, rf"\.{part}\."))


def test_adapters_below_blocks_of_another_kind_count_in_the_forward():
    model = adapted()
    assert_twins(model, select_blocks(model, r"layers\.0\.input_layernorm\.weight"))


def test_weights_and_outputs_are_afterwards_what_they_were_to_the_bit():
    model = adapted(torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer = model(input_ids=IDS).logits
    blocks = select_blocks(model, "lora")
    with pytest.raises(RuntimeError, match="halfway"), capture(model, blocks, len(IDS)):
        raise RuntimeError("halfway")
    per_sample_gradients(model, IDS, losses, blocks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(input_ids=IDS).logits, answer)
    assert not any(getattr(module, "merged", False) for module in model.modules())


def test_an_interrupt_at_any_layer_while_merging_leaves_the_model_as_it_was(monkeypatch):
    model = adapted(torch.float32)
    blocks, merged = select_blocks(model, "lora"), lora_merge.Adapter.merged
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    adapters = list(adapters_of(model, blocks).values())

    def interrupted_at(place, adapter):
        if adapter.layer is place.layer:
            raise KeyboardInterrupt
        return merged(adapter)

    for place in adapters:
        monkeypatch.setattr(lora_merge.Adapter, "merged", lambda adapter, place=place: interrupted_at(place, adapter))
        with pytest.raises(KeyboardInterrupt), capture(model, blocks, len(IDS)):
            raise AssertionError("merged in spite of the interrupt")
        for name, value in model.state_dict().items():
            assert (value.data_ptr(), True) == (before[name][0], torch.equal(value, before[name][1])), name
        assert not any(getattr(module, "merged", False) or module._forward_hooks for module in model.modules())
        assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_inside_the_block_outputs_are_the_same():
    model = adapted()
    answer = model(input_ids=IDS).logits
    with capture(model, select_blocks(model, "lora"), len(IDS)) as captured:
        assert captured.adapters
        torch.testing.assert_close(model(input_ids=IDS).logits, answer, rtol=1e-10, atol=1e-12)


def test_a_base_weight_that_is_looked_at_keeps_its_layer_as_it_is():
    model = adapted()
    blocks = select_blocks(model, r"layers\.1\.self_attn\.q_proj\.(base_layer|lora_A\.default)\.weight")
    assert not any("layers.1.self_attn.q_proj" in name for name in adapters_of(model, blocks))
    assert_twins(model, blocks)


def test_dropout_in_training_keeps_layers_as_they_are():
    model = adapted(dropout=0.5)
    blocks = select_blocks(model, "lora")
    assert adapters_of(model, blocks) and not adapters_of(model.train(), blocks)


def test_half_precision_and_autocast_keep_layers_as_they_are():
    model = adapted(torch.bfloat16)
    assert not adapters_of(model, select_blocks(model, "lora"))
    model = adapted(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert not adapters_of(model, select_blocks(model, "lora"))


def test_a_model_too_large_for_a_second_set_of_weights_is_left_alone(monkeypatch):
    monkeypatch.setattr(lora_merge, "LIMIT", 1000)
    model = adapted()
    assert not adapters_of(model, select_blocks(model, "lora"))


def peft_model(**settings):
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], **settings)
    with quiet_peft():
        return wake(peft.get_peft_model(tiny_language(), config).double().eval())


def test_two_active_adapters_keep_layers_as_they_are():
    model = peft_model()
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.base_model.set_adapter(["default", "second"])
    model = wake(model.double().eval())
    blocks = select_blocks(model, r"lora_[AB]\.(default|second)\.weight")
    assert not adapters_of(model, blocks)
    assert_twins(model, blocks)


def test_dora_is_not_this_map():
    model = peft_model(use_dora=True)
    assert not adapters_of(model, select_blocks(model, r"layers\.0\.input_layernorm\.weight"))


def test_adapters_that_the_loss_switches_off_have_no_gradient_there():
    """As in preference losses, whose reference is the model without its adapters."""
    model = peft_model()

    def twice(model, ids):
        with model.disable_adapter():
            reference = losses(model, ids)
        return losses(model, ids) * reference.square()

    blocks = select_blocks(model, "lora")
    found = per_sample_gradients(model, IDS, twice, blocks)
    expected = loop_gradients(model, [row[None] for row in IDS], twice, blocks)
    for name, gradients in expected.items():
        torch.testing.assert_close(found[name], gradients, rtol=1e-8, atol=1e-10)


def test_layers_that_share_one_adapter_stay_as_they_are():
    model = peft_model()
    first, second = (model.base_model.model.model.layers[i].self_attn.q_proj for i in (0, 1))
    second.lora_A["default"].weight = first.lora_A["default"].weight
    assert isinstance(first.base_layer, nn.Linear)
    blocks = select_blocks(model, r"layers\.0\.self_attn\.q_proj\.lora_A")
    assert not any("q_proj" in name for name in adapters_of(model, blocks))
    assert_twins(model, blocks)
