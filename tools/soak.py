"""Whether the chain gives the same results when it is killed again and again: align, score, select, tune, evaluate.

    python tools/soak.py [--kills 50] [--seed 0] [--out DIR]

Public commands only, each a process of its own, on a minute world. Once they run undisturbed. Then each is started in
another folder and stopped by SIGKILL, SIGINT or SIGTERM at a random moment, again and again, until its share of the
kills is used up and it may end. Its results (scores, choice, weights, answers, metrics) must be those of the
undisturbed run, byte for byte. At last each is stopped once more, something that it reads is changed (an answer of the
pool or of the captions, a picture, a weight, a question), and it is started again: it must refuse, or give what it
gives in a fresh folder. Prints kills, refusals and differences; exits with 1 where there is a difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file, save_file

from vlmsel.data.world.files import WorldSizes, benchmark_files, write_world

SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
ENDED = {signal.SIGKILL: (-9,), signal.SIGINT: (130, -2), signal.SIGTERM: (143, -15)}  # the negative: while it loads
SIZES = WorldSizes(captions=48, pool=40, target=6, questions=24)
ENDS = 10  # starts for every kill, at most
COMMANDS = ("align", "score", "select", "tune", "evaluate")


@dataclass(frozen=True)
class Chain:
    """The commands on one world, in a folder of runs; each reads what the ones before it left in `before`."""

    world: Path
    runs: Path
    before: Path

    def words(self, command: str) -> list[str]:
        """Return a command's words."""
        images, scores = f"{self.world}/images", f"{self.before}/score/scores.parquet"
        settings = ["--settings.save_every", "1", "--settings.batch_size", "8", "--settings.epochs", "2"]
        questions = benchmark_files(self.world)["gqa"]["questions"][0]
        own = {
            "align": ["--data", f"{self.world}/captions.json", "--images", images, *settings],
            "score": [
                *("--model", f"{self.before}/align", "--pool", f"{self.world}/pool.json", "--images", images),
                *("--targets.gqa", f"{self.world}/targets/gqa.json", "--scorers", "[HyperINF,DataInf,TracIn]"),
                *("--batch_size", "2"),
            ],
            "select": ["--scores", scores, "--pool", f"{self.world}/pool.json", "--fraction", "0.5"],
            "tune": ["--model", f"{self.before}/align", "--data", f"{self.before}/select/chosen.json"]
            + ["--images", images, *settings],
            "evaluate": ["--model", f"{self.before}/tune", "--task", "gqa", "--questions", questions]
            + ["--images", f"{images}/test/gqa", "--batch_size", "2", "--max_new_tokens", "4"],
        }[command]
        scorer = ["--scorer", "HyperINF", "--rule", "top"] if command == "select" else []
        return [sys.executable, "-m", "vlmsel", command, *own, *scorer, "--out", str(self.out(command))]

    def out(self, command: str) -> Path:
        """Return where a command's result lies."""
        return self.runs / "select/chosen.json" if command == "select" else self.runs / command

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start a command."""
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(self.words(command), **quiet)  # type: ignore[call-overload, no-any-return]

    def finish(self, command: str) -> tuple[int, str]:
        """Run a command to its end; return its exit code and what it said."""
        process = self.start(command)
        said, _ = process.communicate()
        return process.returncode, said

    def results(self, command: str) -> dict[str, object]:
        """Return a command's results by file, without times and places."""
        folder = self.out(command)
        if command == "select":
            return {"chosen.json": folder.read_bytes()}
        if command == "score":
            return {"scores.parquet": pq.read_table(folder / "scores.parquet").to_pydict()}
        if command == "evaluate":
            metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
            lines = sorted((folder / "predictions.jsonl").read_text().splitlines())
            return {"metrics.json": metrics, "predictions.jsonl": lines}
        files = sorted((folder / "model").rglob("*.safetensors"))
        losses = json.loads((folder / "phase.json").read_text())["losses"]
        return {"losses": losses, **{str(file.relative_to(folder)): file.read_bytes() for file in files}}


# What is changed between two runs


def change_answer(file: Path) -> None:
    """Change the last answer of a file of samples."""
    records = json.loads(file.read_text())
    records[-1]["conversations"][-1]["value"] += " indeed"
    file.write_text(json.dumps(records))


def change_picture(folder: Path) -> None:
    """Paint over every picture of a folder; names stay."""
    for picture in folder.rglob("*.png"):
        with Image.open(picture) as image:
            size = image.size
        Image.new("RGB", size, "red").save(picture)


def change_weights(run: Path) -> None:
    """Double the weights of a run's projector."""
    file = run / "model/projector.safetensors"
    save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)


def change_question(file: Path) -> None:
    """Ask the first question about the picture of the last."""
    questions = json.loads(file.read_text())
    first, *_, last = questions
    questions[first]["imageId"] = questions[last]["imageId"]
    file.write_text(json.dumps(questions))


def changes(chain: Chain) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Give the changes: the command that is stopped, what is changed, and the change."""
    world, before = chain.world, chain.before
    yield "align", "an answer", lambda: change_answer(world / "captions.json")
    yield "align", "the pictures", lambda: change_picture(world / "images/captions")
    yield "score", "an answer", lambda: change_answer(world / "pool.json")
    yield "score", "a target", lambda: change_answer(world / "targets/gqa.json")
    yield "score", "the pictures", lambda: change_picture(world / "images/pool")
    yield "score", "the model", lambda: change_weights(before / "align")
    yield "tune", "an answer", lambda: change_answer(before / "select/chosen.json")
    yield "tune", "the model", lambda: change_weights(before / "align")
    yield "evaluate", "the model", lambda: change_weights(before / "tune")
    yield "evaluate", "the pictures", lambda: change_picture(world / "images/test/gqa")
    yield "evaluate", "a question", lambda: change_question(Path(benchmark_files(world)["gqa"]["questions"][0]))


# The soak


def stop(process: subprocess.Popen[str], after: float, kind: signal.Signals) -> str | None:
    """Stop a process after a while; return what it said, None when it had ended before.

    Raises:
        RuntimeError: it ended otherwise than the signal asks for.
    """
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(kind)
    said, _ = process.communicate()
    if process.returncode == 0:
        return None
    if process.returncode not in ENDED[kind] or "Traceback" in said:
        raise RuntimeError(f"exit code {process.returncode} after {kind.name}: {said[-2000:]}")
    return said


def soaked(chain: Chain, command: str, kills: int, seconds: float, rng: random.Random) -> Counter[str]:
    """Stop a command so many times, each time somewhere in the time that it takes, then let it end."""
    done: Counter[str] = Counter()
    starts = 0
    while done.total() < kills:
        if starts == ENDS * kills:
            raise RuntimeError(f"{command} ended {starts} times and was stopped {done.total()} times only")
        starts += 1
        kind = SIGNALS[done.total() % len(SIGNALS)]
        begun = time.monotonic()
        if stop(chain.start(command), rng.uniform(0, seconds), kind) is None:  # ended: the next begins anew
            seconds = min(seconds, time.monotonic() - begun)  # it has less to do, or the machine is less busy
            out = chain.out(command)
            shutil.rmtree(out if out.is_dir() else out.parent)
            continue
        done[kind.name] += 1
        print(f"\r{command}: stopped {done.total()} times", end="", flush=True)
    code, said = chain.finish(command)
    if code:
        raise RuntimeError(f"{command} does not end after {kills} kills: {said[-2000:]}")
    return done


def changed(command: str, chain: Chain, change: Callable[[], None], after: float) -> tuple[str, str]:
    """Stop a command, change what it reads and start it again; return the outcome and the last line that it said."""
    stop(chain.start(command), after, signal.SIGKILL)
    change()
    code, said = chain.finish(command)
    line = (said.strip().splitlines() or [""])[-1]
    if code == 2 and "changed" in line:
        return "refused", line
    if code:
        return "DIFFERENT", f"exit code {code}: {line}"
    fresh = Chain(chain.world, chain.runs / "fresh", chain.before)
    code, said = fresh.finish(command)
    same = code == 0 and fresh.results(command) == chain.results(command)
    return "equal" if same else "DIFFERENT", line


def undisturbed(chain: Chain) -> dict[str, float]:
    """Run all commands and return the seconds that each takes."""
    seconds = {}
    for command in COMMANDS:
        begun = time.monotonic()
        code, said = chain.finish(command)
        seconds[command] = time.monotonic() - begun
        if code:
            raise RuntimeError(f"{command}: {said[-2000:]}")
    return seconds


def soak(folder: Path, kills: int, seed: int) -> int:
    """Run the soak in a folder and print what came of it; return how many results differ."""
    rng = random.Random(seed)
    write_world(folder / "world", SIZES)
    whole = Chain(folder / "world", folder / "whole", folder / "whole")
    seconds = undisturbed(whole)
    print("undisturbed: " + ", ".join(f"{command} {took:.0f} s" for command, took in seconds.items()), flush=True)
    differences = refusals = 0
    for number, command in enumerate(COMMANDS):
        chain = Chain(folder / "world", folder / "cut", folder / "whole")
        share = len(range(number, kills, len(COMMANDS)))
        done = soaked(chain, command, share, seconds[command], rng)
        same = chain.results(command) == whole.results(command)
        differences += not same
        print(f"{command}: {share} kills {dict(done)}: {'equal' if same else 'DIFFERENT'}", flush=True)
    for number, (command, what, _) in enumerate(list(changes(whole))):
        place = folder / f"changed{number}"
        shutil.copytree(folder / "world", place / "world")
        shutil.copytree(folder / "whole", place / "before")
        chain = Chain(place / "world", place / "runs", place / "before")
        change = list(changes(chain))[number][2]
        outcome, line = changed(command, chain, change, rng.uniform(0.4, 1.0) * seconds[command])
        differences += outcome == "DIFFERENT"
        refusals += outcome == "refused"
        print(f"{command}, then {what} changed: {outcome} ({line[:160]})", flush=True)
        shutil.rmtree(place)
    print(f"{kills} kills, {refusals} refusals, {differences} differences")
    return differences


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a new folder that stays; a temporary one when left out")
    given = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same sums in the same order
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job and its children ignore it
    if given.out is not None:
        given.out.mkdir(parents=True)
        return int(soak(given.out, given.kills, given.seed) > 0)
    with tempfile.TemporaryDirectory() as folder:
        return int(soak(Path(folder), given.kills, given.seed) > 0)


if __name__ == "__main__":
    sys.exit(main())
