"""The plain twin of captured gradients, a batch-of-one autograd loop, and tiny text models to run it on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import peft
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from vlmsel.gradients.blocks import Block
from vlmsel.models.lora import quiet_peft

SIZE = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24}
BERT = {**SIZE, "num_hidden_layers": 3, "num_attention_heads": 2, "initializer_range": 0.3}


def loop_gradients(
    model: nn.Module, singles: Iterable[Any], loss: Callable[[nn.Module, Any], Tensor], blocks: Sequence[Block]
) -> dict[str, Tensor]:
    """Differentiate the loss of each batch of one by itself; a block it does not reach has gradient zero."""
    parameters = dict(model.named_parameters())
    wanted = {block.name: parameters[block.name] for block in blocks}
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    rows = []
    for parameter in wanted.values():
        parameter.requires_grad_(True)
    for single in singles:
        (value,) = loss(model, single)
        rows.append(torch.autograd.grad(value, list(wanted.values()), allow_unused=True, materialize_grads=True))
    for name, flag in flags.items():
        parameters[name].requires_grad_(flag)
    return {
        block.name: torch.stack(column).reshape(-1, block.rows, block.cols)
        for block, column in zip(blocks, zip(*rows, strict=True), strict=True)
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare per sample and block, relative to the norm of the batch's gradients on that block."""
    assert list(found) == list(expected)
    for name, gradients in expected.items():
        assert found[name].shape == gradients.shape, name
        error = (found[name].double() - gradients.double()).norm()
        assert error <= tolerance * gradients.double().norm(), f"{name}: {error / gradients.double().norm():.2e}"


def randomize(model: nn.Module, scale: float = 0.3, seed: int = 0) -> nn.Module:
    """Draw every parameter anew, so that none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.eval()


def tiny_bert(**lora: Any) -> nn.Module:
    """A sentence classifier, with adapters on query and value if options for them are given."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(BertConfig(**BERT, max_position_embeddings=20))
    if lora:
        config = peft.LoraConfig(**{"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS", **lora})
        with quiet_peft():
            model = peft.get_peft_model(model, config)
        randomize(nn.ParameterList(p for name, p in model.named_parameters() if ".lora_" in name))
    return model.eval()


def tiny_gpt2() -> nn.Module:
    """A language model with Conv1D layers whose output head is tied to its embedding."""
    return randomize(GPT2LMHeadModel(GPT2Config(vocab_size=30, n_positions=20, n_embd=8, n_layer=2, n_head=2)))
