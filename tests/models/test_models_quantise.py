"""Packed layers of a language model, by a stand-in for bitsandbytes: adapters are scored exactly on what they hold."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from naive_gradients import assert_same, loop_gradients
from tiny_models import one_sample, random_batch, row_samples, sample_losses, tiny_vlm, wake_lora
from torch import nn

from vlmsel.gradients import select_blocks
from vlmsel.gradients.capture import capture
from vlmsel.models import quantise as room
from vlmsel.models.open import open_subject
from vlmsel.models.quantise import packer, quantise


class Packed(nn.Linear):
    """Holds its weight as one column of bytes, as bitsandbytes does, and computes with what they stand for."""

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.scale = layer.weight.detach().abs().max() / 7
        codes = (layer.weight.detach() / self.scale).round().clamp(-7, 7) + 8
        pairs = codes.to(torch.uint8).flatten().view(-1, 2)
        self.weight = nn.Parameter((pairs[:, :1] * 16 + pairs[:, 1:]), requires_grad=False)

    def unpacked(self):
        codes = torch.cat([self.weight // 16, self.weight % 16], 1).to(self.scale.dtype) - 8
        return (codes * self.scale).view(self.out_features, self.in_features)

    def forward(self, x):
        return F.linear(x, self.unpacked().to(x.dtype), self.bias)


@pytest.fixture
def model():
    model = tiny_vlm(dtype=torch.float64)
    wake_lora(model)
    return model.eval()


def test_decoder_layers_are_packed_and_nothing_else(model):
    assert quantise(model, Packed) == 2 * 7
    packed = {name for name, module in model.named_modules() if isinstance(module, Packed)}
    assert all(".layers." in name and ".lora_" not in name for name in packed)
    assert type(model.backbone.lm_head) is nn.Linear and model.blocks()


def test_gradients_of_adapters_are_those_of_a_loop_over_samples(model):
    quantise(model, Packed)
    batch, blocks = random_batch(model), model.blocks("projector+lora")
    with capture(model, blocks, len(batch.uids), row_samples(model, batch)) as captured:
        sample_losses(model, batch).sum().backward()
    found = {name: factor.dense() for name, factor in captured.factors().items()}
    singles = [one_sample(batch, row) for row in range(len(batch.uids))]
    assert_same(found, loop_gradients(model, singles, sample_losses, blocks), 1e-9)


def test_packed_weights_are_no_blocks(model):
    quantise(model, Packed)
    names = [block.name for block in select_blocks(model, "last-block")]
    assert names and all("norm" in name or ".lora_" in name for name in names)
    with pytest.raises(ValueError, match="class .*Packed, which is not supported"):
        select_blocks(model, r"q_proj\.base_layer\.weight")


def test_a_digest_tells_packed_weights_from_others_and_fingerprints_stay(model, tmp_path):
    model = tiny_vlm(tmp_path)
    digest, prints = model.digest(), dict(tiny_vlm(tmp_path).fingerprints)
    quantise(model, Packed)
    assert model.digest() != digest and model.fingerprints == prints


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="the model has none; take --dtype bfloat16"):
        quantise(tiny_vlm(lora=False), Packed)
    monkeypatch.setattr(room, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--dtype 4bit needs bitsandbytes, which is not installed"):
        open_subject("tiny", "cpu", "4bit")
    monkeypatch.setattr(room, "find_spec", lambda name: object())
    monkeypatch.setattr(room, "import_module", lambda name: SimpleNamespace(__version__="0.49.2"))
    with pytest.raises(ValueError, match="8bit on a CPU needs bitsandbytes 0.50 or later, got 0.49.2; update it"):
        packer("8bit", torch.device("cpu"))
    with pytest.raises(ValueError, match="one of float32, bfloat16, 4bit, 8bit, got 'int8'"):
        open_subject("tiny", "cpu", "int8")
