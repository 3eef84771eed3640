"""Scoring on a GPU: the numbers of the CPU, wherever curvature lies, and memory that really runs out."""

import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, tiny_items
from transformers import LlamaConfig, LlamaForCausalLM

from vlmsel.data.batches import Item
from vlmsel.models.config import VLMConfig
from vlmsel.models.vlm import VLM
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SCORERS = [TracIn(), DataInf(), LiSSA(damping=10.0), HyperINF(damping=10.0), Exact(damping=10.0)]


def gaps(found, expected):
    return float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max())


def scores(device, out, place="auto", dtype=torch.float64):
    model = tiny_vlm(dtype=dtype)
    wake_lora(model)
    targets = {"a": tiny_items([1, 0, 2], dtype, seed=1), "b": tiny_items([2], dtype, seed=2)}
    found = Run(model.to(device), tiny_items(dtype=dtype), targets).score(SCORERS, out, place=place)
    return found.scores[:, found.uids.argsort()], found.losses[found.uids.argsort()]


@pytest.mark.parametrize("place", ["device", "host", "disk"])
def test_scores_are_those_of_the_cpu(place, tmp_path):
    expected, losses = scores("cpu", tmp_path / "cpu")
    found, own = scores("cuda", tmp_path / "cuda", place)
    torch.testing.assert_close(own, losses, rtol=1e-6, atol=0)
    assert gaps(found, expected) < 1e-5  # the language model's norms and rotations are float32 whatever its dtype


def test_float32_scores_are_those_of_the_cpu(tmp_path):
    """TF32 would be off by a thousandth."""
    expected, _ = scores("cpu", tmp_path / "cpu")
    found, _ = scores("cuda", tmp_path / "cuda", dtype=torch.float32)
    assert gaps(found, expected) < 1e-4


def texts(count=64, length=512):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 500, (count, length), generator=generator).tolist()
    return [Item(uid, row, row) for uid, row in enumerate(rows)]


def score_texts(model, items, out, size):
    run = Run(model, items, {"a": items[:2]}, spec="last-block", batch_size=size)
    return run.score([TracIn(), DataInf()], out), run.budget.tokens


def test_memory_that_runs_out_halves_batches_and_changes_no_score(tmp_path, capsys):
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=500, hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    config = VLMConfig(vision=None, language="memory", template="text")
    model, items = VLM(config, None, torch.nn.Sequential(), LlamaForCausalLM(shape)).cuda().eval(), texts()
    torch.cuda.empty_cache()
    expected, _ = score_texts(model, items, tmp_path / "small", 4)
    enough = torch.cuda.max_memory_reserved()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * enough / torch.cuda.get_device_properties(0).total_memory)
    try:
        found, tokens = score_texts(model, items, tmp_path / "large", 64)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory on a batch of 64 samples" in capsys.readouterr().out
    assert not found.left_out and tokens is not None and tokens < 64 * 512
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-6 * float(expected.scores.abs().max()))
