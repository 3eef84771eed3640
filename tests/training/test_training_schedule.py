"""Steps, warm-up and learning rate: the published runs and Hugging Face's own scheduler."""

import json
from pathlib import Path

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from vlmsel.training.schedule import rate_factor, total_steps, warmup_steps

CASES = json.loads((Path(__file__).parents[1] / "cases/structure.json").read_text())["schedules"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_published_runs(case):
    steps = total_steps(case["n"], case["global_batch"])
    assert steps == case["steps"]
    assert warmup_steps(steps, 0.03) == case["warmup_hf"]
    assert warmup_steps(steps, 0.03, "floor") == case["warmup_prismatic"]
    if "lr_at_step_22" in case:
        assert 2e-5 * rate_factor(22, steps, case["warmup_hf"]) == case["lr_at_step_22"]


@pytest.mark.parametrize(("steps", "warmup"), [(50, 2), (7, 0), (3, 3), (1, 1)])
@pytest.mark.parametrize(
    ("schedule", "twin"),
    [("cosine", get_cosine_schedule_with_warmup), ("linear", get_linear_schedule_with_warmup)],
)
def test_factor_is_hugging_faces(steps, warmup, schedule, twin):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected = twin(optimizer, warmup, steps)
    for step in range(steps):
        assert rate_factor(step, steps, warmup, schedule) == expected.get_last_lr()[0]
        optimizer.step()
        expected.step()


def test_rate_rises_to_its_peak_and_falls_to_zero():
    rates = [0.5 * rate_factor(step, 100, 10) for step in range(101)]
    assert rates[0] == 0 and rates[10] == max(rates) == 0.5 and rates[-1] == pytest.approx(0)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)


def test_epochs_and_given_steps():
    assert total_steps(33, 32) == 2
    assert total_steps(33, 32, epochs=3) == 6
    assert total_steps(100, 10, epochs=0.25) == 3
    assert total_steps(100, 10, max_steps=7) == 7
    with pytest.raises(ValueError, match="at least one sample and batch size 1, got 0 and 4"):
        total_steps(0, 4)
