"""One accumulator per block serves all scorers that gather the same, with the numbers of each one's own."""

import pytest
import torch

from vlmsel.gradients import Factor
from vlmsel.scorers import DataInf, Exact, HyperINF, LiSSA, TracIn
from vlmsel.scoring import solve as sharing
from vlmsel.scoring.memory import Memory
from vlmsel.scoring.memory_plan import plan_curvature
from vlmsel.scoring.solve import COPIED, leaders, solve_all

BLOCKS = {"wide": (3, 8), "tall": (9, 2), "row": (1, 7)}
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
    return [torch.randn(n, *BLOCKS[block], generator=generator).to(dtype) for n in (4, 3)]


def gathered(scorers, dtype):
    found = {}
    for scorer in scorers:
        for block in BLOCKS:
            parts = batches(block, dtype)
            found[scorer.name, block] = scorer.accumulator(parts[0][:2], float(torch.cat(parts).square().mean()))
            for part in parts:
                found[scorer.name, block].update(Factor.from_dense(part))
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [1, 200, COPIED])
def test_solutions_are_those_of_each_scorers_own_accumulator(dtype, most, monkeypatch):
    monkeypatch.setattr(sharing, "COPIED", most)
    expected = gathered(SCORERS, dtype)
    led = leaders(SCORERS)
    shared = gathered([scorer for scorer in SCORERS if led[scorer.name] == scorer.name], dtype)
    found = {key: (h, details) for key, h, details in solve_all(SCORERS, shared, list(BLOCKS))}
    assert not shared and set(found) == set(expected)
    for key, own in expected.items():
        torch.testing.assert_close(found[key][0], own.solve(), rtol=1e-5 if dtype == torch.float32 else 1e-11, atol=0)
        assert found[key][1].keys() == own.details.keys() and found[key][1].get("samples") == own.details.get("samples")


def test_what_differs_is_gathered_apart():
    led = leaders(SCORERS)
    assert led["H10"] == led["C1"] == "HyperINF" and led["L1"] == led["Exact"] == "LiSSA"
    own = {"short", "fim", "double", "DataInf", "stream", "TracIn", "scaled"}
    assert all(led[name] == name for name in own)


def test_some_blocks_alone_are_solved_and_the_others_left():
    led = leaders(SCORERS)
    shared = gathered([scorer for scorer in SCORERS if led[scorer.name] == scorer.name], torch.float64)
    solved = {key for key, _, _ in solve_all(SCORERS, shared, ["tall"])}
    assert solved == {(scorer.name, "tall") for scorer in SCORERS}
    assert {block for _, block in shared} == {"wide", "row"}


def test_a_sweep_is_planned_as_one_set_of_matrices_and_a_copy():
    memory, blocks = Memory(10**12, 10**12, 10**12, False), {f"q.{i}": (64, 4096) for i in range(128)}
    sweep = [HyperINF(damping=d, name=f"H{d}") for d in (0.1, 1.0, 10.0)]
    one, three = (plan_curvature(scorers, blocks, 1, 1000, memory) for scorers in (sweep[:1], sweep))
    assert one.gathered == three.gathered == 128 * 4 * 4096**2 and three.contents == "128 GFIM matrices"
    solutions = 2 * 4 * 128 * 64 * 4096
    assert three.needs["device"] - one.needs["device"] == COPIED + solutions
