"""Affinities by single target samples: those of a loop over samples one by one, through any number of columns."""

import naive_scorers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import COLLATE, Run, loop, scores_by_hand, tiny_items

from vlmsel.gradients import Factor
from vlmsel.scorers import DataInf, HyperINF, TracIn
from vlmsel.scoring.curvature import Preconditioned
from vlmsel.scoring.virtual import TargetSample, Virtual

FIT = [0, 1, 3, 4, 6]
TARGETS = {"one": ([1, 0, 2], 1), "two": ([0, 1, 1, 2], 2)}  # images of each sample, seed
SCORERS = [
    TracIn(),
    TracIn(block_scale=True, name="scaled"),
    HyperINF(damping=10.0),
    HyperINF(damping=3.0, side="short", solver="cholesky", name="short"),
    DataInf(),
]


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm(dtype=torch.float64)
    wake_lora(vlm)
    return vlm


def target_items():
    return {name: tiny_items(images, torch.float64, seed) for name, (images, seed) in TARGETS.items()}


def scored(model, out, columns, batch_size=3, scorers=SCORERS):
    items = tiny_items(dtype=torch.float64)
    return Run(model, items, target_items(), batch_size=batch_size, fit=FIT, columns=columns).score(scorers, out)


@pytest.fixture(scope="module")
def gradients(model):
    """Those of the pool and of all target samples, from batches of one."""
    blocks = model.blocks("projector+lora")
    every = [item for items in target_items().values() for item in items]
    return loop(model, tiny_items(dtype=torch.float64), blocks), loop(model, every, blocks)


def own_square(scorer, fit, g, v):
    """⟨P g, v⟩ of one block in the metric that unit affinities of a scorer are taken in."""
    if isinstance(scorer, HyperINF):
        wide = g.shape[1] >= g.shape[0]
        h = naive_scorers.hyperinf(fit, g, scorer.damping, "cols" if wide == (scorer.side == "long") else "rows")
        return naive_scorers.dot(h, v) if fit.any() else 0.0
    if isinstance(scorer, TracIn) and scorer.block_scale:
        return naive_scorers.dot(g, v) / naive_scorers.mean_square(fit) if fit.any() else 0.0
    return naive_scorers.dot(g, v)


def norms(scorer, pool, own):
    squares = torch.zeros(len(next(iter(own.values()))), dtype=torch.float64)
    for name, dense in own.items():
        fit = pool[name][FIT]
        squares += torch.tensor([own_square(scorer, fit, g, g) for g in dense], dtype=torch.float64)
    return squares.sqrt()


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def affinities(found, scorer):
    own = found.affinities.of[scorer.name]
    return own.virtual.mixing @ own.columns.double().T


@pytest.mark.parametrize("scorer", SCORERS, ids=lambda one: one.name)
def test_affinities_and_norms_are_those_of_a_loop(model, gradients, tmp_path, scorer):
    pool, targets = gradients
    found = scored(model, tmp_path / "run", columns=7, scorers=[scorer])
    assert_close(affinities(found, scorer), -scores_by_hand(pool, targets, scorer, FIT)[:, order(found)])
    own = found.affinities.of[scorer.name]
    torch.testing.assert_close(own.norms.double(), norms(scorer, pool, pool)[order(found)], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(own.target_norms.double(), norms(scorer, pool, targets), rtol=1e-5, atol=1e-7)
    if isinstance(scorer, DataInf):
        assert own.inner is None
        return
    # ⟨P w, w'⟩ of the virtual targets is what gives the targets' own norms
    mixing = own.virtual.mixing
    torch.testing.assert_close(
        (mixing @ own.inner @ mixing.T).diagonal().sqrt(), own.target_norms.double(), rtol=1e-5, atol=1e-7
    )


def order(found):
    """Positions in the pool of the samples that were scored."""
    uids = [item.uid for item in tiny_items()]
    return [uids.index(uid) for uid in found.affinities.uids.tolist()]


def test_the_table_has_the_files_means_alone(model, gradients, tmp_path):
    found, plain = scored(model, tmp_path / "each", 7), scored(model, tmp_path / "plain", None)
    assert found.names == plain.names and plain.affinities is None
    torch.testing.assert_close(found.scores, plain.scores, rtol=1e-5, atol=1e-6)
    samples = found.affinities.targets
    assert [(one.file, one.uid) for one in samples] == [("one", u) for u in (10, 13, 16)] + [
        ("two", u) for u in (10, 13, 16, 19)
    ]
    for scorer in SCORERS:
        by_sample = affinities(found, scorer)
        for name, rows in (("one", slice(0, 3)), ("two", slice(3, 7))):
            column = plain.scores[plain.names.index((scorer.name, name))].double()
            assert_close(-by_sample[rows].mean(0), column)


def test_losses_of_target_samples_are_their_own(model, tmp_path):
    found = scored(model, tmp_path / "run", 7, scorers=[TracIn()])
    with torch.no_grad():
        expected = [float(model.losses(COLLATE([item]))) for items in target_items().values() for item in items]
    assert [one.loss for one in found.affinities.targets] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_batches_change_nothing_but_rounding(model, tmp_path, batch_size):
    expected, found = scored(model, tmp_path / "a", 4), scored(model, tmp_path / "b", 4, batch_size)
    for scorer in SCORERS:
        a, b = affinities(expected, scorer)[:, order_of(expected)], affinities(found, scorer)[:, order_of(found)]
        assert_close(a, b)


def order_of(found):
    return found.affinities.uids.argsort()


def test_fewer_columns_keep_the_directions_that_hold_most(model, gradients, tmp_path):
    """All target samples are but a few directions here, which the sketches find."""
    pool, targets = gradients
    found = scored(model, tmp_path / "run", columns=5, scorers=[TracIn()])
    virtual = found.affinities.of["TracIn"].virtual
    flat = torch.cat([own.flatten(1) for own in targets.values()], 1)
    unit = flat / flat.norm(dim=1, keepdim=True)
    eigenvalues = torch.linalg.eigvalsh(unit @ unit.T).flip(0)
    r = virtual.mixing.shape[1]
    assert r <= 5 and virtual.share == pytest.approx(float(eigenvalues[:r].sum() / eigenvalues.sum()), abs=0.05)
    expected = -scores_by_hand(pool, targets, TracIn(), FIT)[:, order(found)]
    off = (affinities(found, TracIn()) - expected) / flat.norm(dim=1, keepdim=True)
    size = expected / flat.norm(dim=1, keepdim=True)
    assert float(off.square().sum() / size.square().sum()) < 2 * (1 - virtual.share) + 1e-6


def test_a_chosen_basis_is_orthonormal_and_exact_at_full_rank():
    torch.manual_seed(0)
    v = torch.randn(6, 40, dtype=torch.float64) * torch.tensor([1.0, 2, 3, 0.1, 5, 1])[:, None].double()
    v[5] = 0
    squares = v.square().sum(1)
    unit = torch.where(squares[:, None] > 0, v / squares[:, None].sqrt(), 0)
    samples = [TargetSample("a", uid, None, 0.0) for uid in range(6)]
    for columns in (2, 5, 6):
        virtual = Virtual.of(samples, squares, unit @ unit.T, columns)
        w = virtual.weights @ v
        torch.testing.assert_close(w @ w.T, torch.eye(len(w), dtype=torch.float64), rtol=0, atol=1e-10)
        left = (virtual.mixing @ w - v).square().sum(1)[:5] / squares[:5]
        assert float(left.sum()) / 5 == pytest.approx(1 - virtual.share, abs=1e-9)
        assert len(w) == min(columns, 5)
    own = Virtual.of(samples, squares, None, 6)
    torch.testing.assert_close(own.mixing @ (own.weights @ v), v)


def test_norms_of_an_earlier_version_are_read(model, tmp_path):
    scored(model, tmp_path, 4)
    path = tmp_path / "directions.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert about.pop("lower")
    save_file(tensors, tmp_path / "old.safetensors", metadata=about)
    old, new = (Preconditioned.load(one).metrics["HyperINF"] for one in (tmp_path / "old.safetensors", path))
    for block, metric in old.items():
        assert not metric.lower and new[block].lower
        side = metric.cols if metric.rows is None else metric.rows
        grads = Factor.from_dense(naive_scorers.draw(2, *side.shape, seed=1).to(side))
        torch.testing.assert_close(metric.squares(grads), new[block].squares(grads))


def test_a_stopped_run_goes_on_with_the_same_bits(model, tmp_path):
    expected = scored(model, tmp_path / "a", 4)
    for part in (tmp_path / "a/parts").glob("*"):
        part.unlink()
    found = scored(model, tmp_path / "a", 4)
    h = Preconditioned.load(tmp_path / "a/directions.safetensors")
    assert [all(one.lower for one in h.metrics[name].values()) for name in ("scaled", "HyperINF")] == [False, True]
    assert set(h.metrics) == {"scaled", "HyperINF", "short"} and h.virtual.samples == expected.affinities.targets
    for name, own in expected.affinities.of.items():
        assert all(torch.equal(x, y) for x, y in zip(own[1:4], found.affinities.of[name][1:4], strict=True))
