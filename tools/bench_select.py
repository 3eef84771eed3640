"""The rules on a large pool, beside a plain numpy.argpartition of as many numbers.

    python tools/bench_select.py [--samples 1000000] [--columns 128] [--targets 1000] [--fraction 0.05] [--rules …]

An affinity file of clustered samples and targets is written to a temporary folder by another process. Printed are, for
each rule, the seconds from opening the file to the chosen rows, the greatest memory of the process until then, and the
ratio of the seconds to those of `numpy.argpartition`, row by row, on the same numbers as `columns` rows.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from vlmsel.scoring.affinity import Affinities, Columns, write_affinities
from vlmsel.selection import Ask, Facts

AffinityRule = object


def write(path: Path, samples: int, columns: int, targets: int, seed: int) -> None:
    """Write an affinity file: samples and targets around a few centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, columns)).astype(np.float32)

    def around(count: int) -> np.ndarray:
        own = rng.standard_normal((count, columns), dtype=np.float32)
        for start in range(0, count, 1 << 16):
            own[start : start + (1 << 16)] += centres[rng.integers(20, size=len(own[start : start + (1 << 16)]))]
        return own

    c, u = around(samples), around(targets)
    goals = [{"file": f"file{t % 4}", "uid": t, "weight": None, "loss": 1.0 + t % 4} for t in range(targets)]
    one = Columns(c, u, np.sqrt(np.einsum("nr,nr->n", c, c)), np.linalg.norm(u, axis=1))
    about = {"pool": "none", "pool_sha256": "", "config": ""}
    write_affinities(path, np.arange(samples), goals, {"S": one}, about)


def argpartition_seconds(path: Path, fraction: float) -> float:
    """Return the seconds of argpartition on the file's numbers, read beforehand."""
    found = Affinities(path)
    numbers = found.unit("S", slice(0, len(found))).reshape(-1, len(found))
    start = time.perf_counter()
    for row in numbers:
        np.argpartition(row, round(fraction * len(found)))
    return time.perf_counter() - start


def choose(path: Path, rule: str, fraction: float) -> tuple[float, int]:
    """Return the seconds of a choice, and how many samples it has."""
    start = time.perf_counter()
    found = Affinities(path)
    sources = np.array(["a", "b", "c", "d"])[np.arange(len(found)) % 4]
    facts = Facts(sources, np.ones(len(found), dtype=bool))
    choice = AffinityRule().choose(rule, found, "S", None, Ask(fraction=fraction).budget(facts))
    return time.perf_counter() - start, len(choice.taken.rows)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--targets", type=int, default=1000)
    parser.add_argument("--fraction", type=float, default=0.05)
    parser.add_argument("--rules", nargs="+", default=["round_robin", "strata", "herding"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "affinity.safetensors"
        writer = get_context("spawn").Process(target=write, args=(path, given.samples, given.columns, given.targets, 0))
        writer.start()
        writer.join()
        found = []
        for name in given.rules:
            seconds, count = choose(path, name, given.fraction)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            found.append((name, seconds, count, peak))
        plain = argpartition_seconds(path, given.fraction)
    print(f"{given.samples} samples x {given.columns} columns, {given.targets} targets; argpartition {plain:.1f} s")
    for name, seconds, count, peak in found:
        print(f"{name}: {count} samples in {seconds:.1f} s, {seconds / plain:.1f} x argpartition, peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
