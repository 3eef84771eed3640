"""Flipped labels: an exact share, never the class that was there, all other classes alike, by the seed alone."""

from collections import Counter

import pytest

from vlmsel.data.label_noise import flip_labels

LABELS = [i % 4 for i in range(4000)]


def changed(flipped):
    return [new != old for new, old in zip(flipped, LABELS, strict=True)]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.3333, 1.0])
def test_exactly_the_share_is_flipped_and_never_to_the_same_class(share):
    flipped = flip_labels(LABELS, 4, share, seed=3)
    assert sum(changed(flipped)) == round(share * len(LABELS))
    assert set(flipped) <= set(range(4))


def test_a_flip_goes_to_each_other_class_alike():
    flipped = flip_labels(LABELS, 4, 1.0, seed=0)
    for old in range(4):
        counts = Counter(new for new, was in zip(flipped, LABELS, strict=True) if was == old)
        assert set(counts) == set(range(4)) - {old} and min(counts.values()) > 270  # 333 each, deviation 15


def test_flips_follow_the_seed_and_lie_everywhere():
    assert flip_labels(LABELS, 4, 0.2, seed=1) == flip_labels(LABELS, 4, 0.2, seed=1)
    assert flip_labels(LABELS, 4, 0.2, seed=1) != flip_labels(LABELS, 4, 0.2, seed=2)
    assert 330 < sum(changed(flip_labels(LABELS, 4, 0.2, seed=1))[:2000]) < 470


def test_shares_and_classes_that_cannot_be():
    for share in (-0.1, 1.5):
        with pytest.raises(ValueError, match=f"flip must be a share from 0 to 1, got {share}"):
            flip_labels(LABELS, 4, share, seed=0)
    with pytest.raises(ValueError, match="labels of 1 class cannot be flipped"):
        flip_labels([0, 0], 1, 0.5, seed=0)
