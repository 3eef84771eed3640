"""Layers that flatten samples and tokens to rows, and linear maps that say so in their own words, against a loop."""

import peft
import pytest
import torch
from naive_gradients import assert_same, loop_gradients, randomize
from torch import nn
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from vlmsel.gradients import check_capture, per_sample_gradients, select_blocks
from vlmsel.gradients.blocks import layer_kind
from vlmsel.models.lora import quiet_peft

IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(0))
SIZE = {"vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def opt():
    own = {"ffn_dim": 12, "word_embed_proj_dim": 8, "max_position_embeddings": 20, "dropout": 0.0}
    return OPTForCausalLM(OPTConfig(**SIZE, **SPECIAL, **own))


def qwen():
    own = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 4, "num_key_value_heads": 2}
    own |= {"experts_implementation": "eager"}  # the fused one knows no float64
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**SIZE, **SPECIAL, **own, intermediate_size=12, shared_expert_intermediate_size=4)
    )


def falcon():
    return FalconForCausalLM(FalconConfig(**SIZE, bos_token_id=0, eos_token_id=1))


def adapted():
    with quiet_peft():
        return peft.get_peft_model(opt(), peft.LoraConfig(r=2, target_modules=["fc1", "fc2", "q_proj"]))


def losses(model, ids):
    return model(input_ids=ids, use_cache=False).logits.logsumexp(2).square().mean(1)


@pytest.mark.parametrize(
    ("make", "spec", "needs"),
    [
        (opt, "last-block", "fc1.weight"),
        (opt, r"layers\..*(fc[12]|layer_norm|q_proj)", "final_layer_norm.bias"),
        (adapted, "lora", "fc2.lora_B"),
        (adapted, r"fc1\.base_layer|fc1.lora_A", "fc1.base_layer.weight"),
        (qwen, "last-block", "mlp.shared_expert_gate.weight"),
        (qwen, r"shared_expert", "layers.0.mlp.shared_expert.down_proj"),
        (falcon, "last-block", "query_key_value.weight"),
        (falcon, r"dense|mlp", "dense_4h_to_h.weight"),
    ],
)
def test_gradients_are_those_of_each_sample_alone(make, spec, needs):
    model = randomize(make()).double()
    blocks = select_blocks(model, spec)
    assert any(needs in block.name for block in blocks)
    expected = loop_gradients(model, IDS.split(1), losses, blocks)
    assert_same(per_sample_gradients(model, IDS, losses, blocks), expected, 1e-9)
    check_capture(model, IDS, losses, blocks, alone=IDS.split(1))


class Layer(nn.Module):
    """A map of flattened rows in the order that `order` gives them."""

    def __init__(self, order):
        super().__init__()
        self.map, self.order = nn.Linear(4, 4), order

    def forward(self, x):
        rows = self.map(self.order(x).flatten(0, 1))
        return rows.reshape(self.order(x).shape).sum((0, 1), keepdim=True) * 0 + self.order(
            rows.reshape(self.order(x).shape)
        )


class Model(nn.Module):
    def __init__(self, order=lambda x: x):
        super().__init__()
        self.layers = nn.ModuleList([Layer(order)])

    def forward(self, x):
        return self.layers[0](x)


def squares(model, x):
    return model(x).square().flatten(1).mean(1)


def test_rows_flattened_tokens_first_are_refused_by_the_first_batch():
    x, model = torch.randn(2, 5, 4), randomize(Model(lambda x: x.transpose(0, 1)))
    check_capture(randomize(Model()), x, squares, select_blocks(model, "map"), alone=x.split(1))
    with pytest.raises(ValueError, match=r"block layers.0.map.weight: .*not in the order of the samples"):
        check_capture(model, x, squares, select_blocks(model, "map"), alone=x.split(1))


def test_rows_that_are_no_tokens_of_the_layer_are_refused():
    x, model = torch.randn(2, 5, 4), randomize(Model(lambda x: x[:, :4]))
    with pytest.raises(ValueError, match=r"layers.0.map read a tensor of shape \[8, 4\]; expected 2 rows"):
        per_sample_gradients(model, x, squares, select_blocks(model, "map"))


class Worded(nn.Linear):
    def __init__(self, words):
        super().__init__(3, 2)
        self.words = words

    def forward(self, x):
        return self.words(self, x)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (lambda m, x: x @ m.weight.T + m.bias, "linear"),
        (lambda m, x: x @ m.weight.T, None),
        (lambda m, x: x.clamp(-1, 1) @ m.weight.T + m.bias, None),
        (lambda m, x: x @ (m.weight + 1e-2).T + m.bias, None),
        (lambda m, x: x @ m.weight.round(decimals=1).T + m.bias, None),
        (lambda m, x: x @ (m.weight / m.weight.norm()).T + m.bias, None),
        (lambda m, x: (x @ m.weight.T + m.bias, x), None),
        (lambda m, x: m.missing, None),
    ],
)
def test_a_linear_map_in_other_words_is_taken_for_one_where_it_proves_to_be(words, kind):
    module = Worded(words)
    weight = module.weight.detach().clone()
    assert layer_kind(module) == kind == layer_kind(module)
    assert torch.equal(module.weight, weight) and isinstance(module.weight, nn.Parameter)
