"""Two processes of one thread each against one process of one thread: how much faster `vlmsel score` gets.

    python tools/bench_processes.py [--samples 2048] [--processes 2] [--repeats 3]

Timed is the work of `Passes.score` (targets, damping, curvature on a tenth of the pool, score pass) for the tiny VLM on
projector + LoRA with TracIn, DataInf, LiSSA and HyperINF and two targets, from when all processes are ready
until the last is done; loading Python and the model is not. Repetitions are interleaved; the ratio is the median.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORKER = "--worker"


def worker(world: Path) -> None:
    """Score the world's pool once and print the seconds, in the first of the processes."""
    import torch

    from vlmsel import processes
    from vlmsel.data.dataset import Reading
    from vlmsel.models.open import open_subject
    from vlmsel.models.pool import open_pool
    from vlmsel.scorers import DataInf, HyperINF, LiSSA, TracIn
    from vlmsel.scoring.batches import Batching
    from vlmsel.scoring.passes import FitPart, Passes
    from vlmsel.scoring.pool_pass import Share

    torch.set_num_threads(1)
    model, reading = open_subject("tiny", "cpu"), Reading(world / "images")
    pool, one, two = (
        open_pool(model, world / name, reading).samples
        for name in ("pool.json", "targets/vqav2.json", "targets/gqa.json")
    )
    part, blocks = FitPart(len(pool) // 10, None), model.blocks("projector+lora")
    passes = Passes.of(model, blocks, pool, {"a": one, "b": two}, Batching(1024), part)
    share = Share(chunk=2)  # few batches, for a small pool must be shared out too
    folder = Path(os.environ["BENCH_OUT"])
    processes.wait()
    start = time.perf_counter()
    passes.score([TracIn(), DataInf(), LiSSA(), HyperINF()], folder, share, "device")
    processes.wait()
    if processes.is_main():
        print(f"seconds {time.perf_counter() - start:.4f}")


def run(world: Path, count: int) -> float:
    """Score with `count` processes; return seconds."""
    own = [__file__, WORKER, str(world)]
    launch = ["-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone", *own] if count > 1 else own
    with tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCH_OUT": out}
        ended = subprocess.run([sys.executable, *launch], env=environment, capture_output=True, text=True, check=True)
    return float(ended.stdout.rpartition("seconds ")[2])


def main() -> None:
    """Print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    from vlmsel.data.world.files import WorldSizes, write_world

    with tempfile.TemporaryDirectory() as name:
        world = Path(name)
        write_world(world, WorldSizes(0, given.samples, 32, 0))
        rows = [(run(world, 1), run(world, given.processes)) for _ in range(given.repeats)]
    for one, many in rows:
        print(f"one process {one:.2f} s, {given.processes} processes {many:.2f} s: {one / many:.2f}x")
    print(f"median: {statistics.median(one / many for one, many in rows):.2f}x")


if __name__ == "__main__":
    if WORKER in sys.argv:
        worker(Path(sys.argv[sys.argv.index(WORKER) + 1]))
    else:
        main()
