"""Scores over the norms of target and sample: the naive cosine, and the three ways to it, in float64."""

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import naive_scorers as naive
import pytest
import torch
from tiny_models import row_samples, sample_losses, tiny_vlm, wake_lora
from tiny_pool import COLLATE, OBJECTIVE, job, loop, loop_means, tiny_items, tiny_plan, tiny_streams
from torch import nn
from vlmsel.scoring.store_scores import score_store

from vlmsel.gradients import capture, select_blocks
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.gradients.store.writer import StoreWriter
from vlmsel.scorers import HyperINF, Scorer, TracIn, score_gradients
from vlmsel.scorers.load import load_scorer
from vlmsel.scorers.testing import check_scorer
from vlmsel.scoring import score_pass as passes
from vlmsel.scoring.curvature import Directions
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import score_pool
from vlmsel.scoring.score_pass import FINE, NO_GRADIENT, Objective, scoring

COSINE = TracIn(cosine=True, name="TracIn.cosine")
SHAPES = {"a": (5, 3), "b": (1, 4), "c": (2, 6)}


@dataclass(frozen=True)
class Normalised(Scorer):
    """A plug-in with curvature whose scores are divided by norms: HyperINF in another scale."""

    damping: float = 10.0
    name: str = "Normalised"

    @property
    def normalised(self):
        return True

    def accumulator(self, targets, mean_square=None):
        return HyperINF(self.damping).accumulator(targets)


SCORERS = [TracIn(), COSINE, HyperINF(damping=10.0), Normalised()]


def arrays(n=6, targets=2):
    gradients = {name: naive.draw(n, *shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return gradients, {name: naive.draw(targets, *shape, seed=9 + i) for i, (name, shape) in enumerate(SHAPES.items())}


def naive_cosine(h, g):
    """-⟨h, g⟩ / (‖h‖ ‖g‖) of one target and one sample, both a list of blocks."""
    inner = sum(naive.dot(a, b) for a, b in zip(h, g, strict=True))
    return -inner / math.sqrt(sum(naive.dot(a, a) for a in h) * sum(naive.dot(b, b) for b in g))


def test_the_cosine_is_that_of_a_loop_over_all_blocks():
    gradients, targets = arrays()
    expected = [
        [naive_cosine([v[t] for v in targets.values()], [g[i] for g in gradients.values()]) for i in range(6)]
        for t in range(2)
    ]
    found = score_gradients(gradients, targets, COSINE)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_plug_in_s_norm_is_that_of_p_v():
    gradients, targets = arrays()
    sides = {name: "cols" if cols >= rows else "rows" for name, (rows, cols) in SHAPES.items()}
    h = {
        name: torch.stack([naive.hyperinf(gradients[name], v, 10.0, side) for v in targets[name]])
        for name, side in sides.items()
    }
    expected = score_gradients(gradients, h, COSINE)
    torch.testing.assert_close(score_gradients(gradients, targets, Normalised()), expected, rtol=1e-6, atol=1e-9)


def test_sizes_make_no_difference():
    gradients, targets = arrays()
    sizes = torch.tensor([1e-3, 1, 2, 1e4, 5, 6], dtype=torch.float64)[:, None, None]
    scaled = {name: sizes * g for name, g in gradients.items()}, {name: 1e5 * v for name, v in targets.items()}
    torch.testing.assert_close(score_gradients(*scaled, COSINE), score_gradients(gradients, targets, COSINE))
    own = {name: g[2:3] for name, g in gradients.items()}
    assert score_gradients(gradients, own, COSINE)[0, 2].item() == pytest.approx(-1)


def test_what_has_no_gradient_scores_zero():
    gradients, targets = arrays()
    for name in SHAPES:
        gradients[name][3], targets[name][1] = 0, 0
    found = score_gradients(gradients, targets, COSINE)
    assert not found[:, 3].any() and not found[1].any() and bool(found[0, [0, 1, 2, 4, 5]].all())
    gradients["b"][3], targets["b"][1] = 1, 1  # on one block alone
    assert score_gradients(gradients, targets, COSINE)[1, 3].item() == pytest.approx(-1)


# The three ways


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm(dtype=torch.float64)
    wake_lora(vlm)
    return vlm


def goals():
    return {"one": tiny_items([1, 2, 0], torch.float64, seed=1), "text": tiny_items([0, 0], torch.float64, seed=2)}


def streamed(model, out, batch_size=3, spec="projector+lora", scorers=SCORERS, items=None):
    items = tiny_items(dtype=torch.float64) if items is None else items
    work = job(model, select_blocks(model, spec))
    found = score_pool(work, tiny_plan(items, batch_size), tiny_streams(items, goals(), batch_size), scorers, out)
    assert not work.bad.reasons
    return found.scores[:, found.uids.argsort()]


def by_arrays(model, spec="projector+lora"):
    blocks = select_blocks(model, spec)
    gradients, means = loop(model, tiny_items(dtype=torch.float64), blocks), loop_means(model, goals(), blocks)
    return torch.cat([score_gradients(gradients, means, scorer) for scorer in SCORERS])


@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_streamed_scores_are_those_of_a_loop(model, spec, batch_size, tmp_path):
    found, expected = streamed(model, tmp_path, batch_size, spec), by_arrays(model, spec)
    for row, one in zip(found, expected, strict=True):
        torch.testing.assert_close(row, one, rtol=0, atol=1e-8 * one.abs().max().item())
    assert found[2:4].abs().max() <= 1 + 1e-12 < found[:2].abs().max()


def test_stored_gradients_give_the_same(model, tmp_path):
    items, blocks = tiny_items(dtype=torch.float64), select_blocks(model, "projector+lora")
    writer = StoreWriter(tmp_path, blocks)
    for number, start in enumerate(range(0, len(items), 3)):
        batch = COLLATE(items[start : start + 3])
        with capture(model, blocks, len(batch.uids), row_samples(model, batch)) as captured:
            losses = sample_losses(model, batch)
            losses.sum().backward()
        writer.write_shard(number, batch.uids, losses, captured.factors())
    writer.write_targets(["one", "text"], loop_means(model, goals(), blocks))
    writer.finish()
    found = score_store(GradientStore.open(tmp_path), SCORERS)[2]
    for row, expected in zip(found, by_arrays(model).float(), strict=True):  # float32 is what is stored
        torch.testing.assert_close(row, expected, rtol=0, atol=3e-5 * expected.abs().max().item())


def test_a_projector_that_text_never_reaches_scores_zero(model, tmp_path):
    found = streamed(model, tmp_path, spec="projector")[2:4]  # samples 1 and 4 and the second target have no image
    assert torch.isfinite(found).all() and not found[1].any()
    assert (found[0] == 0).nonzero().flatten().tolist() == [1, 4]


def test_a_stopped_run_still_divides(model, tmp_path):
    first = streamed(model, tmp_path)
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    assert torch.equal(streamed(model, tmp_path), first)
    directions = Directions.load(tmp_path / "directions.safetensors")
    assert directions.normalised == (False, False, True, True, False, False, True, True)
    norms = torch.stack([stack.square().sum((1, 2)) for stack in directions.stacks.values()]).sum(0)
    assert norms[[2, 3, 6, 7]].tolist() == pytest.approx([1] * 4) and norms[0].item() != pytest.approx(1)


def test_without_division_factors_are_used_as_they_come(model, tmp_path, monkeypatch):
    sinks, real = [], passes.capture
    monkeypatch.setattr(
        passes, "capture", lambda *given, **more: sinks.append(more.get("sink")) or real(*given, **more)
    )
    streamed(model, tmp_path / "a", scorers=[TracIn()])
    assert sinks[-1] is not None
    streamed(model, tmp_path / "b", scorers=[TracIn(), COSINE])
    assert sinks[-1] is None


# Weights that are used several times


class Twice(nn.Module):
    """One linear map applied twice, so that its gradient is the sum of two outer products."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(naive.draw(3, 3, seed=4))

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x))).square().sum(1)


def vectors(x):
    return SimpleNamespace(uids=torch.arange(len(x)), x=x)


def score_vectors(model, x, stacks, scale=1.0):
    objective = Objective(lambda own, batch: scale * own(batch.x), lambda own, batch: {})
    blocks = select_blocks(model, "layer")
    with scoring(model, objective, blocks, stacks, Budget(), [True]) as score:
        (found,) = score(vectors(x))
    return found


def test_the_norm_of_a_weight_that_is_used_twice_is_that_of_its_whole_gradient():
    model, x = Twice(), naive.draw(5, 3, seed=1)
    stacks = {"layer.weight": naive.draw(1, 3, 3, seed=2), "layer.bias": naive.draw(1, 1, 3, seed=3)}
    length = math.sqrt(sum(naive.dot(h, h) for h in stacks.values()))
    found = score_vectors(model, x, {name: h / length for name, h in stacks.items()})
    for row, score in zip(x, found.scores[0], strict=True):
        gradient = torch.autograd.grad(model(row[None]).sum(), list(model.parameters()))
        expected = naive_cosine([h[0] for h in stacks.values()], [gradient[0], gradient[1][None]])
        assert score.item() == pytest.approx(expected, rel=1e-10)


def test_a_norm_beyond_the_range_is_reported_not_scored_as_zero():
    model, x = Twice().float(), naive.draw(3, 3, seed=1).float()
    stacks = {"layer.weight": torch.full((1, 3, 3), 1e-3), "layer.bias": torch.zeros(1, 1, 3)}
    scale = torch.tensor([1.0, 1e21, 1.0])
    found = score_vectors(model, x, stacks, scale)
    assert found.codes.tolist() == [FINE, NO_GRADIENT, FINE]
    assert torch.isnan(found.scores[0]).tolist() == [False, True, False]


# Settings


def test_the_battery_is_passed():
    check_scorer(COSINE)
    check_scorer(Normalised())
    assert load_scorer("TracIn(cosine=True, name='TracIn.cosine')") == COSINE and not TracIn().normalised


def test_the_battery_refuses_a_property_that_is_no_truth_value():
    @dataclass(frozen=True)
    class Wrong(Normalised):
        @property
        def normalised(self):
            return "yes"

    with pytest.raises(AssertionError, match="expected `normalised` to be True or False, got 'yes'"):
        check_scorer(Wrong())


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ValueError, match="cosine divides by norms over all blocks, block_scale by .*; leave one out"):
        TracIn(block_scale=True, cosine=True)
    with pytest.raises(ValueError, match="cosine must be True or False, got 'no'"):
        replace(COSINE, cosine="no")


def test_losses_do_not_matter_by_their_scale(model, tmp_path):
    """16 times a sample's loss is 16 times its gradient: its TracIn moves, its cosine does not."""
    items = tiny_items(dtype=torch.float64)
    weights = torch.tensor([1.0, 16.0] * 4, dtype=torch.float64)

    def losses(own, batch):
        values = OBJECTIVE.losses(own, batch)
        return values * weights[(batch.uids - 10) // 3] if len(batch.uids) == 8 else values

    work = job(model, select_blocks(model, "lora"), OBJECTIVE._replace(losses=losses))
    found = score_pool(work, tiny_plan(items, 8), tiny_streams(items, goals(), 3), [TracIn(), COSINE], tmp_path / "a")
    plain = streamed(model, tmp_path / "b", 3, "lora", [TracIn(), COSINE])
    order = found.uids.argsort()
    torch.testing.assert_close(found.scores[2:, order], plain[2:], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.scores[:2, order], plain[:2] * weights, rtol=1e-8, atol=1e-12)
