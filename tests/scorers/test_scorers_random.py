"""Random scores: standard normal, a function of (seed, target, uid) alone."""

import pytest
import torch

from vlmsel import score_gradients
from vlmsel.scorers import Random, Samples

PINNED = [0.22412671148777008, 1.5318565368652344]


def samples(uids):
    """Samples of which nothing but their uids is known."""
    unknown = torch.full(uids.shape, torch.nan)
    return Samples(uids, unknown, torch.zeros_like(uids), [""] * len(uids), list)


def draw(scorer, uids, names):
    """Return the scores of these uids on targets of these names."""
    return scorer.score(samples(uids), {name: samples(uids[:0]) for name in names})


def ranks(scores):
    """Turn standard normal scores into numbers that should be uniform on (0, 1)."""
    return torch.special.ndtr(scores.double())


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_standard_normal(seed):
    uniform = ranks(draw(Random(seed), torch.arange(4000), ["t"])[0]).sort().values
    steps = torch.arange(1, 4001, dtype=torch.float64) / 4000
    assert (uniform - steps).abs().max() < 1.95 / 4000**0.5  # Kolmogorov and Smirnov, 1 in 1000


def test_a_small_selection_is_spread_over_the_pool():
    chosen = draw(Random(), torch.arange(10000), ["t"])[0].argsort()[:1000]
    counts = torch.bincount(chosen // 1000, minlength=10)
    assert counts.min() > 60 and counts.max() < 140  # 100 each, four standard deviations


def test_seeds_and_targets_are_independent():
    uids = torch.arange(4000)
    rows = torch.cat([draw(Random(seed), uids, ["a", "b"]) for seed in (0, 1)])
    correlation = torch.corrcoef(rows.double())
    assert (correlation - torch.eye(4, dtype=torch.float64)).abs().max() < 0.08


def test_a_score_does_not_depend_on_the_batch():
    uids = torch.tensor([7, 100000, 3, 12])
    whole = draw(Random(3), uids, ["a", "b"])
    parts = [draw(Random(3), part, ["a", "b"]) for part in (uids[:1], uids[1:])]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(draw(Random(3), uids, ["b"]), whole[1:])
    assert torch.equal(draw(Random(3), uids.flip(0), ["a", "b"]), whole.flip(1))


def test_scores_are_the_same_on_every_machine_and_in_every_version():
    """A selection published with a seed can be drawn again."""
    found = draw(Random(0), torch.tensor([0, 1]), ["t"])[0].tolist()
    assert found == pytest.approx(PINNED, rel=1e-6)


def test_no_sample_and_no_target_have_no_scores():
    assert draw(Random(), torch.arange(0), ["a", "b"]).shape == (2, 0)
    assert draw(Random(), torch.arange(3), []).shape == (0, 3)


def test_arrays_are_scored_by_position():
    gradients = {"w": torch.zeros(5, 2, 2)}
    found = score_gradients(gradients, {"w": torch.zeros(3, 2, 2)}, Random(1))
    assert torch.equal(found, draw(Random(1), torch.arange(5), ["0", "1", "2"]))
