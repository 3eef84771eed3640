"""Herding against the greedy sum over all samples, in float64."""

from importlib import import_module

import numpy as np
import pytest
from small_choices import Wallet, budget, unit_rows

from vlmsel.selection import herd

herding = import_module("vlmsel.selection.herding")


def greedy(phi, mean, amount, allowed):
    wallet, chosen = Wallet(amount), []
    while True:
        free = [i for i in range(len(phi)) if allowed[i] and i not in chosen and wallet.fits(i)]
        if not free or not wallet.left:
            return chosen
        rest = mean - phi[chosen].sum(axis=0) / (len(chosen) + 1)
        chosen.append(max(free, key=lambda i: (rest @ phi[i], -i)))
        wallet.pay(chosen[-1])


def setting(seed, n=300, r=4, many=6):
    rng = np.random.default_rng(seed)
    features, directions, shares = unit_rows(rng, n, r), unit_rows(rng, many, r), rng.random(many)
    whitening = (rng.normal(size=(r, r)) + 2 * np.eye(r)).astype(np.float32)
    return features, directions, shares / shares.sum(), whitening


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("tokens", [False, True])
def test_the_choice_is_the_greedy_one(seed, tokens):
    features, directions, shares, whitening = setting(seed)
    rng = np.random.default_rng(seed)
    allowed = rng.random(300) < 0.9
    costs, sources = rng.integers(2, 20, size=300), rng.choice(["a", "b"], size=300)
    amount = budget(700, 300, costs, sources, {"a": 90}) if tokens else budget(80, 300)
    found = herd(lambda rows: features[rows], directions, shares, whitening, amount, allowed)
    phi = features.astype(np.float64) @ whitening
    mean = shares @ directions @ np.linalg.inv(whitening.astype(np.float64)).T
    np.testing.assert_allclose(phi @ mean, features @ directions.T @ shares, atol=1e-5)  # the mean unit affinity
    assert found.tolist() == greedy(phi, mean, amount, allowed)


@pytest.mark.parametrize("seed", range(3))
def test_large_pools_are_chosen_in_parts_that_come_near(seed, monkeypatch):
    features, directions, shares, _ = setting(seed, n=2000, r=6)
    none, every = np.eye(6, dtype=np.float32), np.ones(2000, dtype=bool)
    mean = shares @ directions

    def gap():
        rows = herd(lambda rows: features[rows], directions, shares, none, budget(200, 2000), every)
        assert len(set(rows.tolist())) == 200
        return np.linalg.norm(features[rows].mean(axis=0) - mean)

    exact = gap()
    monkeypatch.setattr(herding, "_WHOLE", 100)
    assert gap() < exact + 0.02
    best = np.argsort(-(features @ mean))[:200]
    assert exact < 0.3 * np.linalg.norm(features[best].mean(axis=0) - mean)


def test_near_duplicates_are_thinned():
    features = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    directions, every = np.array([[0.8, 0.6]], dtype=np.float32), np.ones(4, dtype=bool)
    found = herd(lambda rows: features[rows], directions, np.ones(1), np.eye(2), budget(2, 4), every)
    assert found.tolist() == [0, 3]
