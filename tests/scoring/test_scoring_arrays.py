"""Gradients in memory: what is refused, and with which words; dtypes."""

import math

import pytest
import torch

from vlmsel import score_gradients
from vlmsel.scorers import BUILT_IN, FeatureScorer, HyperINF, TracIn


def ones(*shape, dtype=torch.float32):
    return torch.ones(shape, dtype=dtype)


def with_entry(value):
    tensor = ones(3, 2, 2)
    tensor[1, 0, 0] = value
    return tensor


@pytest.mark.parametrize(
    "gradients, targets, message",
    [
        ({}, {}, "no block given"),
        ({"a": ones(3, 2, 2)}, {"b": ones(1, 2, 2)}, "different blocks: a, b only on one side"),
        ({"a": ones(3, 2, 2)}, {"a": ones(1, 2, 3)}, r"block a: expected .* got \[3, 2, 2\] and \[1, 2, 3\]"),
        ({"a": ones(3, 2, 2)}, {"a": ones(2, 2)}, r"block a: expected .* got \[3, 2, 2\] and \[2, 2\]"),
        ({"a": ones(3, 4)}, {"a": ones(1, 4)}, r"block a: expected gradients \[n, rows, cols\]"),
        ({"a": torch.tensor(1.0)}, {"a": ones(1, 2, 2)}, r"block a: expected .* got \[\] and \[1, 2, 2\]"),
        (
            {"a": with_entry(math.nan)},
            {"a": ones(1, 2, 2)},
            "block a: gradient of sample 1 is not finite; leave it out",
        ),
        ({"a": with_entry(1e30)}, {"a": ones(1, 2, 2)}, "block a: gradient of sample 1 is not finite"),
        ({"a": ones(3, 2, 2)}, {"a": with_entry(-math.inf)}, "block a: target 1 is not finite"),
        (
            {"a": ones(3, 2, 2), "b": ones(4, 2, 2)},
            {"a": ones(1, 2, 2), "b": ones(1, 2, 2)},
            r"gradients of different blocks have different lengths: \[3, 4\]",
        ),
        (
            {"a": ones(3, 2, 2), "b": ones(3, 2, 2)},
            {"a": ones(1, 2, 2), "b": ones(2, 2, 2)},
            r"targets of different blocks have different lengths: \[1, 2\]",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(gradients, targets, message):
    with pytest.raises(ValueError, match=message):
        score_gradients(gradients, targets, TracIn())


@pytest.mark.parametrize(
    "gradient, target, expected",
    [
        (torch.float64, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.int64, torch.float32, torch.float32),
    ],
)
def test_scores_are_in_float32_or_better(gradient, target, expected):
    scores = score_gradients({"w": ones(3, 2, 2, dtype=gradient)}, {"w": ones(1, 2, 2, dtype=target)}, HyperINF())
    assert scores.dtype == expected and scores.shape == (1, 3)


@pytest.mark.parametrize("name", [name for name, kind in BUILT_IN.items() if not issubclass(kind, FeatureScorer)])
def test_no_sample_gets_no_score(name):
    assert score_gradients({"w": ones(0, 2, 3)}, {"w": ones(2, 2, 3)}, BUILT_IN[name]()).shape == (2, 0)


@pytest.mark.parametrize("name", [name for name, kind in BUILT_IN.items() if issubclass(kind, FeatureScorer)])
def test_who_looks_at_samples_refuses_gradients(name):
    with pytest.raises(ValueError, match=f"{name} compares samples with those of the targets"):
        score_gradients({"w": ones(3, 2, 3)}, {"w": ones(2, 2, 3)}, BUILT_IN[name]())


def test_the_order_of_blocks_does_not_matter():
    a, b = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0)).unbind()
    one = score_gradients({"a": a, "b": b}, {"b": b[:1], "a": a[:1]}, HyperINF())
    torch.testing.assert_close(score_gradients({"b": b, "a": a}, {"a": a[:1], "b": b[:1]}, HyperINF()), one)
