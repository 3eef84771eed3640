"""A pool of a million records: resident memory and time to the first batch.

    python tools/bench_pool.py [--records 1000000] [--form jsonl|json|parquet] [--batches 100]

Writes a pool of short conversations into a temporary folder, opens it as `vlmsel score` does with a tiny text model (a
new process each: the first looks at all records, the second finds that kept) and reads batches, which measures the
samples of the first windows. Printed are the times, the resident memory after imports and the model, what came to it by
then and at most, in this process without workers.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMED = 10_000, 20_000  # samples whose measuring is timed
WORDS = "a small red circle stands left of the large green square that lies under one blue triangle".split()


def record(number: int) -> dict:
    """Make a conversation of two rounds whose length differs from its neighbours'."""
    text = " ".join(WORDS[(number * 7 + i) % len(WORDS)] for i in range(5 + number % 20))
    said = [("human", f"{number}: what is this?"), ("gpt", text), ("human", "And its colour?"), ("gpt", "green")]
    turns = [{"from": role, "value": value} for role, value in said]
    return {"id": f"{number}", "source": f"set{number % 7}", "conversations": turns}


def write(path: Path, count: int) -> None:
    """Write the pool in the form its name ends in."""
    if path.suffix == ".parquet":
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_generator(lambda: map(record, range(count)), cache_dir=str(path.parent)).to_parquet(path)
        return
    mark, between, end = ("[", ",", "]") if path.suffix == ".json" else ("", "\n", "\n")
    with open(path, "w") as file:
        file.write(mark)
        for number in range(count):
            file.write((between if number else "") + json.dumps(record(number)))
        file.write(end)


def resident() -> float:
    """Return the resident memory of this process in MB, without pages of mapped files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def processor() -> float:
    """Return the seconds of processor time of this process and of the workers that ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextmanager
def peak() -> Iterator[list[float]]:
    """Give a list that holds, behind the block, the most resident memory within it in MB, looked at every 20 ms."""
    found, done = [resident()], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            found[0] = max(found[0], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def measure(pool: Path, batches: int) -> None:
    """Open a pool, read batches and print what it took."""
    from vlmsel.data.dataset import Reading
    from vlmsel.models.open import open_subject
    from vlmsel.models.pool import open_pool
    from vlmsel.scoring.batches import Batching

    subject = open_subject("tiny-text", "cpu")
    base, start, used = resident(), time.perf_counter(), processor()
    with peak() as top:
        found = open_pool(subject, pool, Reading(max_length=256), measured=False)
        opened = time.perf_counter() - start
        reader = Batching(max_tokens=4096).plan(subject, found.samples).batches()
        next(reader)
        first, used = time.perf_counter() - start, processor() - used
        for _, _ in zip(range(batches), reader, strict=False):
            pass
    begun = time.perf_counter()
    found.samples.lengths_of(range(*TIMED))
    rate = len(range(*TIMED)) / (time.perf_counter() - begun)
    print(
        f"{pool.name}: {found.total} records; first batch after {first:.1f} s (opened in {opened:.1f} s; "
        f"processor time of all processes {used:.1f} s); "
        f"samples measured at {rate:.0f}/s; "
        f"memory after imports {base:.0f} MB, now {resident() - base:+.0f} MB, at most {top[0] - base:+.0f} MB"
    )


def main() -> None:
    """Write the pool, and measure in fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--form", choices=("jsonl", "json", "parquet"), default="jsonl")
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--pool", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pool is not None:
        return measure(args.pool, args.batches)
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / f"pool.{args.form}"
        write(pool, args.records)
        print(f"{pool.name}: {pool.stat().st_size / 1e6:.0f} MB", flush=True)
        cache = {**os.environ, "XDG_CACHE_HOME": folder, "HF_DATASETS_CACHE": folder}
        for _ in range(2):
            own = [sys.executable, __file__, "--pool", str(pool), "--batches", str(args.batches)]
            subprocess.run(own, env=cache, check=True)


if __name__ == "__main__":
    main()
