"""`torchrun -m vlmsel score`: as many processes as you like give the scores of one, and speak once."""

import json
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from score_words import about, score_words, table

from vlmsel import cli, runs
from vlmsel.data.world.files import write_pool
from vlmsel.scoring.affinity import NAME, Affinities

SCORERS = (
    "HyperINF(damping=10.0,dtype='float64')",
    "DataInf",
    "LiSSA",
    "LiSSA(batch='stream',name='stream')",
    "Exact(damping=10.0)",
    "TracIn",
    "TracIn(cosine=True,name='cosine')",
    "TracIn(block_scale=True,name='scaled')",
    "own_mean:AlongTheMean",
    "Random",
)
PLUGIN = '''
"""P v = ⟨v, m⟩ m with the mean gradient m, whose statistic is no sum, so that it says itself how two become one."""

from dataclasses import dataclass

import torch
from vlmsel.scorers import GradientScorer, Solved, Statistic


class Mean(Statistic):
    def __init__(self, block):
        super().__init__(block)
        self.mean = block.targets.new_zeros(block.rows, block.cols)

    @property
    def key(self):
        return "mean"

    def gather(self, factor):
        n = factor.samples
        batch = factor.weighted_sum(self.mean.new_full((1, n), 1 / n))[0]
        self.mean.lerp_(batch, n / (self.count + n))

    def tensors(self):
        return {"mean": self.mean}

    def merge(self, state):
        n = int(state["count"])
        if n:
            self.mean.lerp_(state["mean"].to(self.mean), n / (self.count + n))
        self.count += n


@dataclass(frozen=True)
class AlongTheMean(GradientScorer):
    name: str = "AlongTheMean"

    def statistic(self, block):
        return Mean(block)

    def solve(self, statistic, v):
        along = torch.einsum("trc,rc->t", v, statistic.mean)
        return Solved(along[:, None, None] * statistic.mean, {"samples": statistic.count})
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pool of 70 samples and a record that is none, and a scorer of one's own."""
    folder = tmp_path_factory.mktemp("processes")
    write_pool(folder, 70, random.Random(2))
    (folder / "pool.json").write_text(json.dumps([{"id": 1}, *runs.read_json(folder / "pool.json")]))
    (folder / "own_mean.py").write_text(PLUGIN)
    return folder


def arguments(folder, world, aligned, out):
    """A pass of 70 batches, more than the 64 of a chunk, so that the score pass is dealt too."""
    data = {"pool": folder / "pool.json", "images": folder / "images", "target_images": world / "images"}
    more = {"batch_size": 1, "fit_samples": 41, "scale_samples": 20, "blocks": "projector", "curvature_on": "device"}
    more |= {"each_target": "true", "columns": 2}
    return score_words(world, aligned, out, SCORERS, **data, **more)


@pytest.fixture(scope="module")
def alone(folder, world, aligned):
    """The run folder of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert cli.main(arguments(folder, world, aligned, folder / "alone")) == 0
    return folder / "alone"


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_gives_the_scores_of_one(count, folder, world, aligned, alone, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [*launch, "-m", "vlmsel", *arguments(folder, world, aligned, tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )
    assert ended.returncode == 0, ended.stderr
    pool, out = folder / "pool.json", tmp_path / "run"
    left, repeated, curvature, written, then = ended.stdout.splitlines()
    assert left.startswith(f"{pool}: 1 of 71 samples left out, listed in {out}/skipped.json (the first: sample 0: ")
    assert curvature.startswith("curvature: 4 GFIM matrices, 4 sets of kept gradients, ")
    assert written.startswith(f"{out}/scores.parquet: 70 of 71 samples, 20 scores each ")
    assert "samples repeat earlier ones" in repeated and then.startswith(f"next: vlmsel select --scores {out} ")
    found, expected = table(out), table(alone)
    assert list(found) == list(expected)
    for name in found:
        if "/" not in name and name != "loss":
            assert found[name] == expected[name]
            continue
        assert math.isnan(found[name][0]) and math.isnan(expected[name][0])
        largest = max(map(abs, expected[name][1:]))
        assert largest > 0 and found[name][1:] == pytest.approx(expected[name][1:], rel=0, abs=1e-5 * largest), name
    for scorer, blocks in about(out)["details"].items():
        counts = {block: own.get("samples") for block, own in blocks.items()}
        assert counts == {block: own.get("samples") for block, own in about(alone)["details"][scorer].items()}
        assert scorer in ("TracIn", "cosine", "stream") or set(counts.values()) == {41}
    mine, its = Affinities(out / NAME), Affinities(alone / NAME)
    assert mine.targets == its.targets and np.array_equal(mine.uids, its.uids)
    for scorer in its.about["scorers"]:  # through fewer columns than there are target samples
        assert mine.measure(scorer)["columns"] < len(its.targets)
        np.testing.assert_allclose(mine.block(scorer, slice(None)), its.block(scorer, slice(None)), atol=2e-5)
