"""Scores of blocks put together, against loops over blocks and pairs of samples, and through both passes."""

import naive_scorers as naive
import pytest
import torch

from vlmsel import HyperINF, TracIn, score_gradients
from vlmsel.scoring.aggregate import WAYS, aggregate
from vlmsel.scoring.curvature import FitSources, Targets
from vlmsel.scoring.pool_pass import score_pool
from vlmsel.scoring.source import ArraySource


def naive_rank(scores, i):
    below = sum(one < scores[i] for one in scores)
    ties = sum(one == scores[i] for one in scores)
    return (below + ties / 2) / len(scores)


def naive_aggregate(blocks, i, how):
    """Of one column: `blocks` are lists of scores."""
    count = len(blocks)
    if how == "sum":
        return sum(block[i] for block in blocks)
    if how == "scaled":
        loud = [(sum(one**2 for one in block) / len(block)) ** 0.5 for block in blocks]
        return sum(block[i] / rms for block, rms in zip(blocks, loud, strict=True) if rms > 0) / count
    ranks = [naive_rank(block, i) for block in blocks]
    if how == "rank":
        return sum(ranks) / count
    return -(sum(rank < 0.2 for rank in ranks) + 1 - sum(ranks) / count) / count


def blocks_of(n=11):
    """Gradients and targets on four blocks of different loudness, of which one is without gradients."""
    shapes = {"a": (2, 3), "b": (4, 1), "c": (1, 5), "d": (2, 2)}
    gradients = {name: 10**k * naive.draw(n, *shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
    gradients["d"] = torch.zeros_like(gradients["d"])
    return gradients, {name: naive.draw(2, *shape, seed=9) for name, shape in shapes.items()}


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("scorer", [HyperINF(damping=1.0), TracIn(), TracIn(cosine=True)], ids=repr)
def test_they_are_those_of_a_loop_over_blocks(scorer, how, tmp_path):
    gradients, targets = blocks_of()
    parts = [score_gradients({name: gradients[name]}, {name: targets[name]}, scorer) for name in "abc"]
    if scorer.normalised:  # the norms are those of all blocks
        flat = torch.cat([one.flatten(1) for one in gradients.values()], 1)
        goal = torch.cat([one.flatten(1) for one in targets.values()], 1)
        norm = goal.norm(dim=1)[:, None] * flat.norm(dim=1)
        parts = [score_gradients({k: gradients[k]}, {k: targets[k]}, TracIn()) / norm for k in "abc"]
    parts.append(torch.zeros_like(parts[0]))
    expected = [[naive_aggregate([p[t].tolist() for p in parts], i, how) for i in range(11)] for t in range(2)]
    found = score_gradients(gradients, targets, scorer, how)
    torch.testing.assert_close(found, torch.tensor(expected).to(found), rtol=1e-5, atol=1e-6)
    source = ArraySource(gradients)
    sources, goals = FitSources(source, source), Targets(("x", "y"), lambda: targets)
    scored = score_pool(source, sources, goals, [TracIn(name="beside"), scorer], tmp_path, how=how)
    torch.testing.assert_close(scored.scores[2:].to(found), found, rtol=1e-5, atol=1e-6)


def test_samples_that_are_left_out_take_no_rank(tmp_path):
    gradients, targets = blocks_of()
    gradients["a"][4] = torch.nan
    source = ArraySource(gradients)
    scored = score_pool(source, FitSources(source, source), Targets(("x", "y"), lambda: targets), [TracIn()], tmp_path,
                        how="rank")  # fmt: skip
    keep = [i for i in range(11) if i != 4]
    alone = score_gradients({name: one[keep] for name, one in gradients.items()}, targets, TracIn(), "rank")
    assert torch.isnan(scored.scores[:, 4]).all()
    torch.testing.assert_close(scored.scores[:, keep].to(alone), alone)


def test_rank_and_vote_do_not_see_how_loud_a_block_is():
    scores = naive.draw(3, 2, 20)
    louder = scores * torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)[:, None, None]
    for how in ("rank", "vote", "scaled"):
        torch.testing.assert_close(aggregate(louder, how), aggregate(scores, how))
    assert not torch.allclose(aggregate(louder, "sum"), aggregate(scores, "sum"))


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="aggregate.*'mean'"):
        aggregate(torch.zeros(1, 1, 1), "mean")
