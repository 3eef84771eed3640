"""TracIn and DataInf here and in other attribution libraries: are the scores the same, and how many samples a second?

    python -m venv peers
    peers/bin/pip install . dattri dattri-llm bergson kronfluence captum
    peers/bin/pip install --no-deps pyDVL && peers/bin/pip install dask distributed zarr pyDeprecate
    OMP_NUM_THREADS=1 peers/bin/python tools/bench_peers.py --clock cpu --method TracIn --samples 256

None of them is needed by vlmsel; one that is not installed, lacks the method or fails is listed with the reason. (pyDVL
asks for numpy below 2 and ran with 2.4.) All score the same random texts of 32 to 96 tokens against four targets of one
sample each, from the gradients of a small Llama's LoRA matrices, in float32 on the CPU; `peer_adapters.py` has the
settings. DataInf has one λ for all blocks, which every library takes, and each LoRA matrix is a block. What is timed is
everything from texts to scores, target gradients included. Repetitions of all libraries are interleaved; rates and
ratios are medians. `difference` is the largest one to our scores, relative to a target's largest score; above 1e-5 the
exit status is 1. `ours/theirs` above 1 means that vlmsel is faster.

Measured with torch 2.14.1, one thread, seconds of the process, 2 layers 256 wide, r = 8, batches of 32, 128 samples;
five repetitions of TracIn, three of DataInf; `drawn` is --order drawn, where the pool comes in no order and every
library batches it as it does by itself:

                                   q_proj and v_proj                  all linear layers
    method   library      version  difference  ours/theirs  drawn     difference  ours/theirs  drawn
    TracIn   autograd     2.14.1     1.6e-06      1.62       1.54       4.7e-06      1.72       1.73
    TracIn   dattri       0.3.0      1.5e-06      1.44       1.90       5.0e-06      1.60       2.33
    TracIn   dattri-llm   0.1.0      6.9e-07      1.05       1.43       1.0e-06      1.21       1.61
    TracIn   bergson      2.5.1      7.5e-07      1.14       1.12       9.5e-07      1.27       1.27
    TracIn   kronfluence  1.0.1      6.2e-07      1.01       1.36       1.1e-06      1.13       1.50
    TracIn   captum       0.9.0      6.2e-07      1.12       1.50       1.1e-06      1.32       1.69
    TracIn   pyDVL        0.10.0     8.9e-07      1.18       1.59       1.0e-06      1.23       1.70
    DataInf  dattri       0.3.0      2.7e-06      1.51
    DataInf  pyDVL        0.10.0     7.1e-07      9.92

vlmsel made 131 samples a second for TracIn (113 with all linear layers) and 62 for DataInf, which reads the pool twice
(DataInf was measured before LoRA layers ran as one map, on a busier machine).

How to read it. All compute the same numbers. Plain TracIn by hooks on layers costs what its backwards cost, whoever
does it: with adapters on two small maps a layer kronfluence is as fast as vlmsel on sorted samples. With adapters on
all linear layers vlmsel gains 13 % on it and more on the others, since it runs a layer and its adapter as one map. On a
pool as it comes it gains what padding costs: every pass puts samples of like length together, which of the others only
bergson does. Only dattri and pyDVL have DataInf. dattri keeps every gradient in memory; pyDVL runs the model once per
block. kronfluence collects garbage four times per call, which takes long in a process that has imported much and is
kept cheap here. Nothing follows for GPUs, large models or several processes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.metadata
import io
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import peer_adapters
import torch
from peer_adapters import Job, Scores
from plain_text import PlainText, Ready, adapted, gather, llama, sample_losses
from torch import Tensor, nn

from vlmsel.data.batches import Collator, Item, length_batches
from vlmsel.gradients import Block, select_blocks
from vlmsel.models.config import ALL_LINEAR
from vlmsel.models.lora import lora_parameters
from vlmsel.scorers import BlockTargets, DataInf, GradientScorer, TracIn
from vlmsel.scoring.halving import Budget
from vlmsel.scoring.score_pass import ScoreReducer
from vlmsel.scoring.solve import solve_all, start_statistics
from vlmsel.scoring.source import ModelSource

LORA = {"attention": ("q_proj", "v_proj"), "all": ALL_LINEAR}
TOLERANCE = 1e-5


def texts(count: int, shortest: int, longest: int, seed: int, ordered: bool = True) -> list[Item]:
    """Draw random texts, longest first or as they come, whose second half is supervised."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
    lengths = lengths.sort(descending=True).values if ordered else lengths
    items = []
    for uid, length in enumerate(lengths.tolist()):
        ids = torch.randint(3, 1000, (length,), generator=generator).tolist()
        items.append(Item(uid, ids, [-100] * (length // 2) + ids[length // 2 :]))
    return items


def lora_llama(layers: int, width: int, rank: int, targets: Sequence[str]) -> nn.Module:
    """Make a random Llama with adapters whose B is not zero, for that would leave A without a gradient."""
    model = adapted(llama(layers, width), rank, targets)
    for name, parameter in lora_parameters(model).items():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def batches(items: Sequence[Item], size: int) -> list[Any]:
    """Put samples of like length into padded batches, as every pass of vlmsel does."""
    groups = length_batches([len(item.input_ids) for item in items], size)
    return [Collator(0)([items[i] for i in group]) for group in groups]


def lora_blocks(job: Job) -> list[Block]:
    """Select the LoRA matrices."""
    return select_blocks(job.model, "lora")


def ours(scorer: GradientScorer) -> Callable[[Job], Scores]:
    """Target gradients, the curvature pass where the scorer needs one, and the score pass, as a run does them."""

    def prepare(job: Job) -> Scores:
        return lambda: ours_scores(job, scorer)

    return prepare


def source(job: Job, made: Sequence[Any]) -> ModelSource:
    """Give the gradients of batches."""
    return ModelSource(PlainText(job.model), lora_blocks(job), Ready(made), Budget())  # type: ignore[arg-type]


def ours_scores(job: Job, scorer: GradientScorer) -> Tensor:
    """Score the pool. DataInf has damping 1 here, so that what is given as the mean squared entry is λ. [targets, n]"""
    pool, targets = (source(job, batches(*each)) for each in ((job.pool, job.batch_size), (job.targets, 2**30)))
    with targets.gradients() as read:
        ((aims,),) = read([0])
    v = {name: aim.dense() for name, aim in aims.factors.items()}
    gathered = start_statistics([scorer], {name: BlockTargets(own, job.damping) for name, own in v.items()})
    if gathered.statistics:
        gather(pool, gathered)
    stacks = {block: solved.h for _, block, solved, _ in solve_all([scorer], gathered, v)}
    with pool.passing(ScoreReducer(stacks)) as read:
        found = [one for pieces in read(range(len(pool.sizes))) for one in pieces]
    return -torch.cat([one.scores for one in found], dim=1)[:, torch.cat([one.uids for one in found]).argsort()]


def mean_square(job: Job) -> float:
    """Return the mean squared gradient entry, over samples and all blocks."""
    pool, total = source(job, batches(job.pool, job.batch_size)), 0.0
    with pool.gradients() as read:
        for found in (found for pieces in read(range(len(pool.sizes))) for found in pieces):
            total += sum(float(factor.sq_norm().double().sum()) for factor in found.factors.values())
    return total / (sum(pool.sizes) * sum(block.rows * block.cols for block in pool.blocks))


def autograd_tracin(job: Job) -> Scores:
    """One backward per sample."""
    parameters = list(lora_parameters(job.model).values())

    def gradient(item: Item) -> Tensor:
        loss = sample_losses(job.model, Collator(0)([item])).sum()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

    def score() -> Tensor:
        aims = torch.stack([gradient(item) for item in job.targets])
        return torch.stack([aims @ gradient(item) for item in job.pool], dim=1)

    return score


class Way(NamedTuple):
    """One library's way to one method's scores."""

    method: str
    library: str  # as the package registry calls it
    prepare: Callable[[Job], Scores]


OURS = {"TracIn": ours(TracIn()), "DataInf": ours(DataInf(damping=1.0))}
PEERS = (
    Way("TracIn", "torch", autograd_tracin),
    Way("TracIn", "dattri", peer_adapters.dattri_tracin),
    Way("TracIn", "dattri-llm", peer_adapters.dattri_llm_tracin),
    Way("TracIn", "bergson", peer_adapters.bergson_tracin),
    Way("TracIn", "kronfluence", peer_adapters.kronfluence_tracin),
    Way("TracIn", "captum", peer_adapters.captum_tracin),
    Way("TracIn", "pyDVL", peer_adapters.pydvl_tracin),
    Way("DataInf", "dattri", peer_adapters.dattri_datainf),
    Way("DataInf", "pyDVL", peer_adapters.pydvl_datainf),
)
WITHOUT = {"TracIn": (), "DataInf": ("dattri-llm", "bergson", "kronfluence", "captum")}  # libraries that lack a method


class Row(NamedTuple):
    """A line of the table; the numbers are missing where there is a reason."""

    method: str
    library: str
    reason: str = ""
    difference: float = 0.0
    rate: float = 0.0  # samples per second
    ratio: float = 1.0  # our rate over theirs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, logs and warnings of the libraries off the screen."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        yield


def version(library: str) -> str:
    """Return the version that is installed, or nothing."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def difference(scores: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the target's largest score, over targets. [targets, n] each

    Raises:
        ValueError: the shapes differ.
    """
    if scores.shape != expected.shape:
        raise ValueError(f"scores have shape {list(scores.shape)}; expected {list(expected.shape)}")
    return float(((scores - expected).abs().amax(1) / expected.abs().amax(1)).max())


def start(way: Way, job: Job, expected: Tensor) -> tuple[Row, Scores | None]:
    """Set a library up and hold its scores against ours, which warms it up as well; on failure say why."""
    if not version(way.library):
        return Row(way.method, way.library, "not installed"), None
    try:
        with quiet():
            score = way.prepare(job)
            found = difference(score().detach(), expected)
    except Exception as problem:  # whatever another library raises is its result here
        reason = f"failed: {type(problem).__name__}: {str(problem).strip().splitlines()[0] if str(problem) else ''}"
        return Row(way.method, way.library, reason), None
    return Row(way.method, way.library, difference=found), score


def seconds(score: Scores, clock: Callable[[], float]) -> float:
    """Time one computation of all scores."""
    with quiet():
        begin = clock()
        score()
        return clock() - begin


def compare(method: str, job: Job, peers: Sequence[Way], repeats: int, clock: Callable[[], float]) -> list[Row]:
    """Measure all libraries that have a method; repetitions are interleaved, every number is a median."""
    mine = OURS[method](job)
    begun = [start(way, job, mine()) for way in peers if way.method == method]
    ready = [(Row(method, "vlmsel"), mine), *((row, score) for row, score in begun if score)]
    gc.collect()
    gc.freeze()  # some libraries collect garbage in every call, and pay for whatever else was imported
    times = [[seconds(score, clock) for _, score in ready] for _ in range(repeats)]
    measured = [
        row._replace(
            rate=len(job.pool) / statistics.median(one[column] for one in times),
            ratio=statistics.median(one[column] / one[0] for one in times),
        )
        for column, (row, _) in enumerate(ready)
    ]
    lacking = [Row(method, library, f"has no {method}") for library in WITHOUT[method]]
    return [*measured, *(row for row, score in begun if not score), *lacking]


def line(row: Row) -> str:
    """Format a line of the table."""
    head = f"{row.method:8}{row.library:13}{version(row.library) or '-':10}"
    return head + (row.reason or f"{row.difference:10.1e}{row.rate:11.1f}{row.ratio:14.2f}")


def make_job(given: argparse.Namespace, folder: str) -> Job:
    """Draw the model and the samples and set λ as a run would, from the mean squared entry."""
    model = lora_llama(given.layers, given.width, given.rank, LORA[given.lora])
    pool = texts(given.samples, 32, 96, 0, given.order == "sorted")
    targets = texts(given.targets, 32, 96, seed=1)
    job = Job(model, pool, targets, given.batch_size, 0.0, folder)
    return replace(job, damping=DataInf().damping * mean_square(job))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lora", choices=sorted(LORA), default="attention", help="q_proj and v_proj, or all linear")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--targets", type=int, default=4)
    parser.add_argument("--order", choices=("sorted", "drawn"), default="sorted", help="of the pool, by length or not")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--method", choices=sorted(OURS), help="both when left out")
    parser.add_argument("--only", nargs="+", metavar="LIBRARY", help="libraries to compare with; all when left out")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: seconds of this process alone")
    return parser.parse_args()


def main() -> int:
    """Print the table; fail if a library's scores differ or it could not be run."""
    given = arguments()
    methods = [given.method] if given.method else list(OURS)
    peers = [way for way in PEERS if way.method in methods and (not given.only or way.library in given.only)]
    clock = time.perf_counter if given.clock == "wall" else time.process_time
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(given, folder)
        rows = [row for method in methods for row in compare(method, job, peers, given.repeats, clock)]
    print(
        f"{len(job.pool)} samples, {len(job.targets)} targets, {len(lora_blocks(job))} LoRA matrices of "
        f"{given.layers} layers {given.width} wide, batches of {job.batch_size}, {torch.get_num_threads()} threads, "
        f"pool {given.order}, "
        f"{given.clock} clock, torch {torch.__version__}"
    )
    print(f"{'method':8}{'library':13}{'version':10}{'difference':>10}{'samples/s':>11}{'ours/theirs':>14}")
    print("\n".join(map(line, rows)))
    print("\n".join(f"{way.library}, {way.method}: {(way.prepare.__doc__ or '').splitlines()[0]}" for way in peers))
    return int(any(not row.difference <= TOLERANCE or row.reason.startswith("failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
