"""Random scores: standard normal, a function of (seed, target, uid) alone."""

import pytest
import torch

from vlmsel.scorers import Random, score_gradients

PINNED = [0.22412671148777008, 1.5318565368652344]


def ranks(scores):
    """Turn standard normal scores into numbers that should be uniform on (0, 1)."""
    return torch.special.ndtr(scores.double())


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_standard_normal(seed):
    uniform = ranks(Random(seed).draw(torch.arange(4000), ["t"])[0]).sort().values
    steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
    assert (uniform - steps).abs().max() < 1.95 / 4000**0.5  # Kolmogorov and Smirnov, 1 in 1000


def test_a_small_selection_is_spread_over_the_pool():
    chosen = Random().draw(torch.arange(10000), ["t"])[0].argsort()[:1000]
    counts = torch.bincount(chosen // 1000, minlength=10)
    assert counts.min() > 60 and counts.max() < 140  # 100 each, four standard deviations


def test_seeds_and_targets_are_independent():
    uids = torch.arange(4000)
    rows = torch.cat([Random(seed).draw(uids, ["a", "b"]) for seed in (0, 1)])
    correlation = torch.corrcoef(rows.double())
    assert (correlation - torch.eye(4, dtype=torch.float64)).abs().max() < 0.08


def test_a_score_does_not_depend_on_the_batch():
    uids = torch.tensor([7, 100000, 3, 12])
    whole = Random(3).draw(uids, ["a", "b"])
    parts = [Random(3).draw(part, ["a", "b"]) for part in (uids[:1], uids[1:])]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(Random(3).draw(uids, ["b"]), whole[1:])
    assert torch.equal(Random(3).draw(uids.flip(0), ["a", "b"]), whole.flip(1))


def test_scores_are_the_same_on_every_machine_and_in_every_version():
    """A selection published with a seed can be drawn again."""
    found = Random(0).draw(torch.tensor([0, 1]), ["t"])[0].tolist()
    assert found == pytest.approx(PINNED, rel=1e-6)


def test_no_sample_and_no_target_have_no_scores():
    assert Random().draw(torch.arange(0), ["a", "b"]).shape == (2, 0)
    assert Random().draw(torch.arange(3), []).shape == (0, 3)


def test_arrays_are_scored_by_position():
    gradients = {"w": torch.zeros(5, 2, 2)}
    found = score_gradients(gradients, {"w": torch.zeros(3, 2, 2)}, Random(1))
    assert torch.equal(found, Random(1).draw(torch.arange(5), ["0", "1", "2"]))


def test_it_has_no_accumulator():
    with pytest.raises(ValueError, match="looks at no gradients"):
        Random().accumulator(torch.zeros(1, 2, 2))
