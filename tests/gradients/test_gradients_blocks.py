"""Selecting blocks: by name, union and expression; which copies count; what cannot be selected and how that is said."""

import pytest
import torch
from naive_gradients import tiny_bert, tiny_gpt2
from tiny_models import tiny_language, tiny_vlm
from torch import nn
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from vlmsel.gradients.blocks import Block, last_layer, layer_kind, left_out, select_blocks


def names(model, spec):
    return [block.name for block in select_blocks(model, spec)]


@pytest.fixture(scope="module")
def vlm():
    return tiny_vlm()


def test_projector_is_weights_and_biases_as_matrices(vlm):
    blocks = select_blocks(vlm, "projector")
    assert [block.name for block in blocks] == [
        "projector.0.weight",
        "projector.0.bias",
        "projector.2.weight",
        "projector.2.bias",
    ]
    shape = vlm.projector[0].weight.shape
    assert blocks[0] == Block("projector.0.weight", "projector.0", *shape)
    assert blocks[1] == Block("projector.0.bias", "projector.0", 1, shape[0])


def test_lora_is_both_matrices_of_every_adapter_in_model_order(vlm):
    found = names(vlm, "lora")
    assert found == [name for name, _ in vlm.named_parameters() if ".lora_" in name]
    assert len(found) % 2 == 0 and found


def test_a_union_has_no_duplicates_and_model_order(vlm):
    union = names(vlm, "lora + projector+lora")
    assert union == names(vlm, "projector") + names(vlm, "lora")


def test_last_block_is_the_language_models_last_layer_with_frozen_weights(vlm):
    found = names(vlm, "last-block")
    prefix = "language_model.base_model.model.model.layers.1."
    assert all(name.startswith(prefix) and name.endswith(".weight") for name in found)
    assert prefix + "self_attn.q_proj.base_layer.weight" in found
    assert prefix + "mlp.down_proj.base_layer.weight" in found and prefix + "input_layernorm.weight" in found


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (tiny_language, "model.layers.1"),
        (lambda: tiny_language(layers=12), "model.layers.11"),
        (tiny_bert, "bert.encoder.layer.2"),
        (tiny_gpt2, "transformer.h.1"),
        (tiny_vlm, "language_model.base_model.model.model.layers.1"),
    ],
)
def test_the_last_layer_by_its_exact_path(make, path):
    model = make()
    assert last_layer(model) == path
    assert {name.startswith(path + ".") for name in names(model, "last-block")} == {True}


def test_lists_of_experts_and_vision_towers_are_not_the_layers_looked_for():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(8))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision_tower = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(9))})
            self.layers = nn.ModuleList(Layer() for _ in range(3))

    assert last_layer(Model()) == "layers.2"
    assert len(names(Model(), "last-block")) == 8


def test_modules_to_save_give_the_trained_copy_only():
    model = tiny_bert(modules_to_save=["classifier"])
    assert names(model, "classifier.*weight") == ["base_model.model.classifier.modules_to_save.default.weight"]


def test_a_tied_weight_is_one_block_under_either_name():
    model = tiny_gpt2()
    assert names(model, "lm_head") == names(model, r"wte\.weight$") == ["transformer.wte.weight"]


@pytest.mark.parametrize("spec", ["layers.7", "lora", "projector+q_proj", ""])
def test_nothing_matching_lists_what_there_is(spec):
    with pytest.raises(ValueError, match=r"match no parameter .*model\.layers\.\*\.self_attn\.q_proj\.weight"):
        select_blocks(tiny_language(), spec)


def test_a_long_list_is_cut(vlm):
    with pytest.raises(ValueError, match=r", and \d+ more") as caught:
        select_blocks(vlm, "nothing")
    assert len(str(caught.value)) < 1200


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "Conv2d"),
        (nn.Sequential(nn.Embedding(3, 2, max_norm=1.0)), "Embedding"),
        (nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True)), "Embedding"),
        (nn.Sequential(nn.LayerNorm([2, 3])), "LayerNorm"),
        (nn.ModuleList([nn.MultiheadAttention(4, 2)]), "MultiheadAttention"),
        (nn.ModuleList([nn.MultiheadAttention(4, 2).out_proj]), "NonDynamicallyQuantizableLinear"),
    ],
)
def test_an_unsupported_layer_is_named(model, layer):
    with pytest.raises(ValueError, match=rf"parameter 0\..*{layer}, which is not supported; .*nn\.Linear"):
        select_blocks(model, "weight")


def test_a_subclass_with_its_own_forward_is_not_its_parent():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * torch.nn.functional.linear(x, self.weight, self.bias)

    assert layer_kind(Scaled(2, 2)) is None
    assert layer_kind(type("Plain", (nn.Linear,), {})(2, 2)) == "linear"


def test_a_malformed_expression_and_a_model_without_layers():
    with pytest.raises(ValueError, match="nor a regular expression"):
        select_blocks(tiny_language(), "layers.(")
    with pytest.raises(ValueError, match="no list of transformer layers"):
        select_blocks(nn.Linear(2, 2), "last-block")


def test_what_a_selection_implies_and_lacks_is_told_with_its_share():
    own = {"num_experts": 4, "moe_intermediate_size": 6, "shared_expert_intermediate_size": 5, "intermediate_size": 12}
    size = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(**size, **own, num_key_value_heads=2))
    blocks = select_blocks(model, "last-block")
    layer = model.model.layers[1]
    missing = sum(p.numel() for p in layer.parameters()) - sum(block.rows * block.cols for block in blocks)
    told = left_out(model, "last-block", blocks)
    share = f"{100 * missing / sum(p.numel() for p in layer.parameters()):.2g} % of the entries"
    assert share in told and "mlp.experts.gate_up_proj" in told and "not looked at" in told
    assert left_out(tiny_language(), "last-block", select_blocks(tiny_language(), "last-block")) == ""
    assert left_out(model, "q_proj.weight", select_blocks(model, "q_proj.weight")) == ""


def test_dora_magnitudes_are_blocks():
    model = tiny_bert(use_dora=True)
    blocks = select_blocks(model, "lora")
    assert [block.rows for block in blocks if "lora_magnitude_vector" in block.name] == [1] * 6 and len(blocks) == 18
    assert left_out(model, "lora", blocks) == ""
    told = left_out(model, "lora", [block for block in blocks if "magnitude" not in block.name])
    assert told.startswith("blocks lora: 6 of 18 parameters") and "lora_magnitude_vector" in told
    assert left_out(tiny_bert(r=2), "lora", select_blocks(tiny_bert(r=2), "lora")) == ""
