"""How fast questions about images are answered: batched against one at a time, and the harness against bare generation.

    python tools/bench_generation.py [--model FOLDER] [--questions 512] [--per_image 5] [--batch_size 64] [--repeats 5]

Both ratios come from one run with interleaved repetitions; each is the median over repetitions of the ratio within one.

batched / single   questions per second of the whole harness (reading images, encoding, generating, writing) at
                   --batch_size and at batch size 1, on the same questions
harness / bare     time of the harness over that of a loop of `generate` over the same batches, made beforehand

Questions are VQAv2's of the embedded world, of which --per_image follow each other on one image, whatever they ask.
VQAv2 has 5.4 questions per image, TextVQA 1.6, POPE 18, GQA's testdev 32. Without --model the tiny preset answers,
whose fresh projector makes its answers meaningless but not their cost; --max_new_tokens bounds them as short answers
do.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vlmsel.data.world.files import WorldSizes, benchmark_files, write_world
from vlmsel.evaluation.asking import Asking
from vlmsel.evaluation.engines.base import Ask
from vlmsel.evaluation.engines.vlm import VLMEngine
from vlmsel.evaluation.harness import Responder, answer_all
from vlmsel.evaluation.task import TaskFiles
from vlmsel.evaluation.tasks import load_task
from vlmsel.evaluation.visual.tasks import VisualTask
from vlmsel.models.open import open_subject
from vlmsel.models.vlm import VLM


class Bench:
    """The questions, the model, and the two ways to answer."""

    def __init__(self, model: VLM, folder: Path, questions: int, per_image: int, max_new_tokens: int) -> None:
        write_world(folder, WorldSizes(0, 0, 0, questions))
        task = load_task("vqav2", TaskFiles(**benchmark_files(folder)["vqav2"]))
        assert isinstance(task, VisualTask)
        self.folder, self.max_new_tokens, self.engine = folder, max_new_tokens, VLMEngine(model)
        self.asked = task.asked(Asking("bare"))
        images = folder / "images/test/vqav2"
        shown = [task.questions[i - i % per_image].image for i in range(len(task.questions))]
        self.asks = {
            q.id: Ask(q.id, self.asked[q.id]["prompt"], images, image)
            for q, image in zip(task.questions, shown, strict=True)
        }
        self.answers: dict[str, str] = {}

    def place(self, identity: str) -> tuple[str, int]:
        """Sort questions by image, then by length, as an evaluation does."""
        return self.asks[identity].image, len(self.asks[identity].prompt)

    def harness(self, batch_size: int, questions: int) -> float:
        """Answer some questions through the harness; return seconds."""
        path = self.folder / "predictions.jsonl"
        path.unlink(missing_ok=True)
        part = dict(list(self.asked.items())[:questions])
        responder = Responder(
            lambda ids: self.engine.prepare([self.asks[i] for i in ids]),
            lambda batch: self.engine.generate(batch, self.max_new_tokens),
        )
        seconds, found = timed(lambda: answer_all(part, responder, path, batch_size=batch_size, order=self.place))
        differ = [i for i in found if self.answers.setdefault(i, found[i]) != found[i]]
        assert not differ, f"{len(differ)} answers differ from those of another batch size, the first: {differ[0]}"
        return seconds

    def bare(self, batch_size: int) -> float:
        """Generate for batches made beforehand; return seconds."""
        order = sorted(self.asked, key=self.place)
        parts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        batches = [self.engine.prepare([self.asks[i] for i in part]) for part in parts]
        return timed(lambda: [self.engine.generate(batch, self.max_new_tokens) for batch in batches])[0]


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def main() -> None:
    """Print both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a preset or the folder of a trained model")
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--per_image", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--max_new_tokens", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    single = min(given.questions, 2 * given.batch_size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = open_subject(given.model, given.device)
        assert isinstance(model, VLM)
        bench = Bench(model, Path(folder), given.questions, given.per_image, given.max_new_tokens)
        bench.harness(given.batch_size, given.questions), bench.harness(1, single)  # warm up
        for repeat in range(given.repeats):
            alone = bench.harness(1, single) / single
            batched = bench.harness(given.batch_size, given.questions)
            rows.append((alone / (batched / given.questions), batched / bench.bare(given.batch_size)))
            speed = given.questions / batched
            gain, cost = rows[-1]
            print(f"repeat {repeat}: {speed:.0f} questions/s, batched/single {gain:.2f}, harness/bare {cost:.3f}")
    ratios = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(
        f"{given.model}, {torch.get_num_threads()} threads, {given.questions} questions, {given.per_image} per image, "
        f"batches of {given.batch_size}"
    )
    print(f"batched / one at a time: {ratios[0]:.2f}x the questions per second")
    print(f"harness / bare generate: {ratios[1]:.3f}x the time")


if __name__ == "__main__":
    main()
