"""Scores over the norms of target and sample: the naive cosine, and the three ways to it, in float64."""

import math
from dataclasses import dataclass
from types import SimpleNamespace

import naive_scorers as naive
import pytest
import torch
from tiny_models import tiny_vlm, wake_lora
from tiny_pool import Run, loop, loop_means, tiny_items
from torch import nn

from vlmsel import score_gradients
from vlmsel.gradients import select_blocks
from vlmsel.gradients.store.reader import GradientStore
from vlmsel.scorers import GradientScorer, HyperINF, Solved, TracIn
from vlmsel.scorers.load import load_scorer
from vlmsel.scorers.testing import check_scorer
from vlmsel.scoring import source
from vlmsel.scoring.curvature import FitSources, Preconditioned, Targets
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.pool_pass import Share, score_pool
from vlmsel.scoring.pool_table import Records
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.source import FINE, NO_GRADIENT, ModelSource, StoreSource
from vlmsel.scoring.store_pass import StoreSpec, write_store

COSINE = TracIn(cosine=True, name="TracIn.cosine")
SHAPES = {"a": (5, 3), "b": (1, 4), "c": (2, 6)}


@dataclass(frozen=True)
class Normalised(GradientScorer):
    """A plug-in with curvature whose scores are divided by norms: HyperINF in another scale."""

    damping: float = 10.0
    normalised: bool = True
    name: str = "Normalised"

    def statistic(self, block):
        return HyperINF(self.damping).statistic(block)

    def solve(self, statistic, v):
        return Solved(3 * HyperINF(self.damping).solve(statistic, v).h)


SCORERS = [TracIn(), COSINE, HyperINF(damping=10.0), Normalised()]


def arrays(n=6, targets=2):
    gradients = {name: naive.draw(n, *shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())}
    return gradients, {name: naive.draw(targets, *shape, seed=9 + i) for i, (name, shape) in enumerate(SHAPES.items())}


def naive_cosine(h, g):
    """-⟨h, g⟩ / (‖h‖ ‖g‖) of one target and one sample, both a list of blocks."""
    inner = sum(naive.dot(a, b) for a, b in zip(h, g, strict=True))
    return -inner / math.sqrt(sum(naive.dot(a, a) for a in h) * sum(naive.dot(b, b) for b in g))


def naive_cosines(h, gradients):
    """The cosine of every target with every sample. [targets, n]"""
    whole = [torch.cat([tensor.flatten(1) for tensor in each.values()], 1) for each in (h, gradients)]
    rows, columns = (each / each.norm(dim=1, keepdim=True).clamp_min(1e-300) for each in whole)
    return -rows @ columns.T


def naive_hyperinf(gradients, targets, damping=10.0):
    """P v of every target, with the GFIM on the long side."""
    return {
        name: torch.stack(
            [naive.hyperinf(own, v, damping, "cols" if own.shape[2] >= own.shape[1] else "rows") for v in targets[name]]
        )
        for name, own in gradients.items()
    }


def test_the_cosine_is_that_of_a_loop_over_all_blocks():
    gradients, targets = arrays()
    rows, columns = (list(zip(*each.values(), strict=True)) for each in (targets, gradients))
    expected = torch.tensor([[naive_cosine(row, column) for column in columns] for row in rows], dtype=torch.float64)
    torch.testing.assert_close(score_gradients(gradients, targets, COSINE), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(naive_cosines(targets, gradients), expected, rtol=1e-12, atol=0)


def test_a_plug_in_s_norm_is_that_of_p_v():
    gradients, targets = arrays()
    expected = naive_cosines(naive_hyperinf(gradients, targets), gradients)
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
        gradients[name][3] = 0
        targets[name][1] = name == "b"  # on one block alone
    found = score_gradients(gradients, targets, COSINE)
    assert not found[:, 3].any() and bool(found[0, [0, 1, 2, 4, 5]].all())
    gradients["b"][3] = 1
    assert score_gradients(gradients, targets, COSINE)[1, 3].item() == pytest.approx(-1)


# A model's gradients, and those of a store


@pytest.fixture(scope="module")
def model():
    vlm = tiny_vlm(dtype=torch.float64)
    wake_lora(vlm)
    return vlm


def goals():
    return {"one": tiny_items([1, 2, 0], torch.float64, seed=1), "text": tiny_items([0, 0], torch.float64, seed=2)}


def run(model, spec="projector+lora", batch_size=3):
    return Run(model, tiny_items(dtype=torch.float64), goals(), spec=spec, batch_size=batch_size)


def in_order(found):
    """The scores by uid."""
    assert not found.left_out
    return found.scores[:, found.uids.argsort()]


def by_hand(model, spec="projector+lora"):
    """The scores of `SCORERS` from a loop over samples."""
    blocks = model.blocks(spec)
    gradients, v = loop(model, tiny_items(dtype=torch.float64), blocks), loop_means(model, goals(), blocks)
    h = naive_hyperinf(gradients, v)
    plain = [-sum(torch.einsum("krc,nrc->kn", each[name], gradients[name]) for name in v) for each in (v, h)]
    return torch.cat([plain[0], naive_cosines(v, gradients), plain[1], naive_cosines(h, gradients)])


def assert_close(found, expected, tolerance):
    for row, one in zip(found, expected, strict=True):
        torch.testing.assert_close(row, one, rtol=0, atol=tolerance * one.abs().max().item(), check_dtype=False)
    assert found[[2, 3, 6, 7]].abs().max() <= 1 + 1e-6 < found[:2].abs().max()


@pytest.mark.parametrize("spec", ["projector+lora", "last-block"])
def test_streamed_scores_are_those_of_a_loop(model, spec, tmp_path):
    expected = by_hand(model, spec)
    for size in (3, 8):
        assert_close(in_order(run(model, spec, size).score(SCORERS, tmp_path / str(size))), expected, 1e-6)


def test_stored_gradients_give_the_same(model, tmp_path):
    live = run(model)
    spec, records = StoreSpec(str(tmp_path / "store")), Records([""] * 40, [0] * 40, {})
    write_store(spec, live.pool, live.targets, records, Share(), {}, None)
    store = GradientStore.open(spec.folder)
    stored, targets = StoreSource(store, set(store.uids.tolist())), Targets(live.targets.names, store.target_gradients)
    found = score_pool(stored, FitSources(stored, stored), targets, SCORERS, tmp_path / "out")
    assert_close(in_order(found), by_hand(model), 3e-5)  # float32 is what is stored


def test_a_projector_that_text_never_reaches_scores_zero(model, tmp_path):
    pool, seen = tiny_items(dtype=torch.float64), {"one": goals()["one"]}
    (found,) = in_order(Run(model, pool, seen, spec="projector").score([COSINE], tmp_path))
    assert (found == 0).nonzero().flatten().tolist() == [1, 4]  # samples without an image


def test_a_stopped_run_still_divides(model, tmp_path):
    first = in_order(run(model).score(SCORERS, tmp_path))
    for path in (tmp_path / "parts").iterdir():
        path.unlink()
    assert torch.equal(in_order(run(model).score(SCORERS, tmp_path)), first)
    found = Preconditioned.load(tmp_path / "directions.safetensors")
    assert found.normalised == (False, False, True, True, False, False, True, True)
    norms = torch.stack([stack.square().sum((1, 2)) for stack in found.stacks.values()]).sum(0)
    assert norms[[2, 3, 6, 7]].tolist() == pytest.approx([1] * 4) and norms[0].item() != pytest.approx(1)


def test_without_division_factors_are_used_as_they_come(model, tmp_path, monkeypatch):
    asked, real = [], source.capture
    monkeypatch.setattr(source, "capture", lambda *given, **how: asked.append(how["whole"]) or real(*given, **how))
    run(model).score([TracIn()], tmp_path / "a")
    assert not asked[-1]
    run(model).score([TracIn(), COSINE], tmp_path / "b")
    assert asked[-1]


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


def score_vectors(module, x, stacks, scale=1.0):
    """Score rows of x, each one's loss times its scale."""
    subject = SimpleNamespace(
        module=module,
        device=x.device,
        losses=lambda batch: scale * module(batch.x),
        row_samples=lambda batch: {},
    )
    batch = SimpleNamespace(uids=torch.arange(len(x)), x=x)
    plan = SimpleNamespace(sizes=[len(x)], cut=None, by_group=lambda numbers: [[batch]])
    read = ModelSource(subject, select_blocks(module, "layer"), plan, Budget())
    columns = len(next(iter(stacks.values())))
    with read.passing(ScoreReducer(stacks, [column % 2 == 0 for column in range(columns)])) as each:
        ((found,),) = each([0])
    return found


def directions(columns):
    return {"layer.weight": naive.draw(columns, 3, 3, seed=2), "layer.bias": naive.draw(columns, 1, 3, seed=3)}


def test_the_norm_of_a_weight_that_is_used_twice_is_that_of_its_whole_gradient():
    model, x, stacks = Twice(), naive.draw(5, 3, seed=1), directions(1)
    length = math.sqrt(sum(naive.dot(h, h) for h in stacks.values()))
    found = score_vectors(model, x, {name: h / length for name, h in stacks.items()})
    for row, score in zip(x, found.scores[0], strict=True):
        gradient = torch.autograd.grad(model(row[None]).sum(), list(model.parameters()))
        expected = naive_cosine([h[0] for h in stacks.values()], [gradient[0], gradient[1][None]])
        assert score.item() == pytest.approx(expected, rel=1e-10)


def test_losses_do_not_matter_by_their_scale():
    """16 times a sample's loss is 16 times its gradient: its plain score moves, its cosine does not."""
    model, x, scale = Twice(), naive.draw(4, 3, seed=1), torch.tensor([1.0, 16.0, 1.0, 16.0], dtype=torch.float64)
    plain, scaled = (score_vectors(model, x, directions(2), each).scores for each in (1.0, scale))
    torch.testing.assert_close(scaled[0], plain[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(scaled[1], plain[1] * scale, rtol=1e-12, atol=0)


def test_a_norm_beyond_the_range_is_reported_not_scored_as_zero():
    model, x = Twice().float(), naive.draw(3, 3, seed=1).float()
    stacks = {"layer.weight": torch.full((1, 3, 3), 1e-3), "layer.bias": torch.zeros(1, 1, 3)}
    found = score_vectors(model, x, stacks, torch.tensor([1.0, 1e21, 1.0]))
    assert found.codes.tolist() == [FINE, NO_GRADIENT, FINE]
    assert torch.isnan(found.scores[0]).tolist() == [False, True, False]


def test_a_plug_in_that_is_normalised_passes_the_battery():
    check_scorer(Normalised())
    assert load_scorer("TracIn(cosine=True, name='TracIn.cosine')") == COSINE and not TracIn().normalised
