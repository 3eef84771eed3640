"""One statistic per block serves all scorers that gather the same, with the numbers of each one's own."""

import pytest
import torch

from vlmsel.gradients import Factor
from vlmsel.scorers import BlockTargets, DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring.memory import Memory
from vlmsel.scoring.memory_plan import plan_curvature
from vlmsel.scoring.solve import solve_all, start_statistics

SHAPES = {"wide": (3, 8), "tall": (9, 2), "row": (1, 7)}
SCORERS = [
    HyperINF(),
    HyperINF(damping=10.0, name="H10"),
    HyperINF(damping=1.0, solver="cholesky", name="C1"),
    HyperINF(side="short", name="short"),
    HyperINF(curvature="fim", name="fim"),
    HyperINF(dtype="float64", name="double"),
    DataInf(),
    LiSSA(),
    LiSSA(damping=1.0, depth=3, name="L1"),
    LiSSA(batch="stream", name="stream"),
    Exact(damping=5.0),
    TracIn(),
    TracIn(block_scale=True, name="scaled"),
]


def batches(block, dtype):
    generator = torch.Generator().manual_seed(len(block))
    return [torch.randn(n, *SHAPES[block], generator=generator).to(dtype) for n in (4, 3)]


def gathered(scorers, dtype=torch.float64):
    """What these scorers need, after two batches, and the targets."""
    parts = {name: batches(name, dtype) for name in SHAPES}
    v = {name: two[0][:2] for name, two in parts.items()}
    squares = {name: float(torch.cat(two).square().mean()) for name, two in parts.items()}
    found = start_statistics(scorers, {name: BlockTargets(v[name], squares[name]) for name in SHAPES})
    for (name, _), statistic in found.statistics.items():
        for part in parts[name]:
            statistic.update(Factor.from_dense(part))
    return found, v


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_solutions_are_those_of_each_scorer_s_own_statistic(dtype, close):
    shared, v = gathered(SCORERS, dtype)
    found = {(scorer, name): solved for scorer, name, solved, _ in solve_all(SCORERS, shared, v)}
    assert not shared.statistics and len(found) == len(SCORERS) * len(SHAPES)
    for scorer in SCORERS:
        own, _ = gathered([scorer], dtype)
        for name in SHAPES:
            one = scorer.solve(own.statistics.get(own.uses[scorer.name, name]), v[name])
            h, details = found[scorer.name, name]
            torch.testing.assert_close(h, one.h, rtol=close, atol=0)
            assert details.keys() == one.details.keys() and details.get("samples") == one.details.get("samples")


def test_what_is_equal_is_gathered_once_and_what_differs_apart():
    found, _ = gathered(SCORERS)
    groups: dict = {}
    for (scorer, name), key in found.uses.items():
        if name == "wide":
            groups.setdefault(key, []).append(scorer)
    assert set(map(tuple, groups.values())) == {
        ("HyperINF", "H10", "C1", "double"),  # float64 is what is summed anyhow
        ("LiSSA", "L1", "Exact"),
        *((name,) for name in ("short", "fim", "DataInf", "stream", "TracIn", "scaled")),
    }
    assert groups[None] == ["TracIn"] and len(found.statistics) == len(SHAPES) * (len(groups) - 1)
    single, _ = gathered(SCORERS, torch.float32)
    assert single.uses["HyperINF", "wide"] == single.uses["C1", "wide"] != single.uses["double", "wide"]


def test_the_last_scorer_alone_uses_a_statistic_up():
    pair = [HyperINF(), HyperINF(solver="cholesky", name="C")]
    shared, v = gathered(pair)
    kept = dict(shared.statistics)
    before = {key: one.gram.clone() for key, one in kept.items()}
    solving = solve_all(pair, shared, v)
    for _ in SHAPES:
        next(solving)
    assert all(torch.equal(one.gram, before[key]) and not one.spendable for key, one in kept.items())
    assert len(list(solving)) == len(SHAPES) and not shared.statistics
    for one in kept.values():
        with pytest.raises(RuntimeError, match="used up"):
            one.state()


def test_some_blocks_alone_are_solved_and_the_others_left():
    shared, v = gathered(SCORERS)
    solved = {key[:2] for key in solve_all(SCORERS, shared, {"tall": v["tall"]})}
    assert solved == {(scorer.name, "tall") for scorer in SCORERS}
    assert {block for block, _ in shared.statistics} == {"wide", "row"}


def test_a_sweep_is_planned_as_one_set_of_matrices():
    memory, blocks = Memory(10**12, 10**12, 10**12, False), {f"q.{i}": (64, 4096) for i in range(128)}
    sweep = [HyperINF(damping=d, name=f"H{d}") for d in (0.1, 1.0, 10.0)]
    one, three = (plan_curvature(scorers, blocks, 1, 1000, memory) for scorers in (sweep[:1], sweep))
    assert one.gathered == three.gathered == 128 * 4 * 4096**2 and three.contents == "128 GFIM matrices"
    assert three.needs["device"] - one.needs["device"] == 2 * 4 * 128 * 64 * 4096  # the solutions
