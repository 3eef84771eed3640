"""Wrong answers in an instruction pool with pictures: which scorers find them?

    python recipes/vlm_mislabel/study.py --out runs/vlm_mislabel --seeds 0 1 2 3 4

The packaged aligned model knows captions alone; tuned once on clean questions it becomes the base of all seeds. Per
seed: a pool of drawn scenes with a question each, of which an exact share has the tempting wrong answer of its type;
the base is tuned on the pool as it is; every sample is scored by its influence on the mean of clean validation samples,
and the most harmful are inspected first. Questions are those of the embedded world in its shares, without captions,
text and near duplicates. A stopped study goes on when it is started again.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.recipe_folder import open_folder
from vlmsel import runs
from vlmsel.commands.call import call
from vlmsel.data.dataset import Reading
from vlmsel.data.formats import write_records
from vlmsel.data.world.files import SOURCES, STYLE_OF, draw_asked, save_sample
from vlmsel.data.world.questions import Asked
from vlmsel.data.world.scenes import Scene, weighted
from vlmsel.models.open import open_subject
from vlmsel.models.pool import open_pool
from vlmsel.reporting.detection import show_rates
from vlmsel.scorers.load import load_scorers
from vlmsel.scoring.table import read_table
from vlmsel.studies.detection import METRICS, SCORES, TARGET, measured
from vlmsel.studies.study import Seed, Study
from vlmsel.training.phases import phase_preset
from vlmsel.training.warmup import sample_losses

ARM, LOSS = "answers as given", "Loss"
SCORERS = (
    "TracIn",
    "TracIn(block_scale=True, name='TracIn.scaled')",
    "TracIn(cosine=True, name='TracIn.cosine')",
    "DataInf",
    "LiSSA",
    "HyperINF(solver='cholesky')",
    "HyperINF(damping=10, solver='cholesky', name='HyperINF.10')",
    "HyperINF(damping=100, solver='cholesky', name='HyperINF.100')",
    "EKFAC",
)


@dataclass(frozen=True)
class MislabelledAnswers(Study[Path, Path, dict[str, Any]]):
    """One pool with wrong answers per seed, one model tuned on it, and what its scores find."""

    base: int
    pool: int
    validation: int
    flip: float
    epochs: float

    def kept(self, seed: Seed, arm: str) -> dict[str, Any] | None:
        path = seed.folder / METRICS
        return runs.read_json(path) if path.is_file() else None

    def prepare(self, seed: Seed) -> None:
        """Tune the base of all seeds."""
        folder = seed.folder.parent / "base"
        if not self.base:
            return
        if not (folder / "data" / "pool.json").is_file():  # pictures keep their time stamps
            rng = random.Random("base")
            drawn = [_drawn(rng, number) for number in range(self.base)]
            write_records(folder / "data" / "pool.json", [_record(folder / "data", *one) for one in drawn])
        _tune("tiny-aligned", folder, 3.0, 0)

    def subset(self, seed: Seed, arm: str) -> Path:
        """Draw the pool, and validation samples with their right and with their wrong answers."""
        folder, rng = seed.folder / "data", random.Random(f"wrong answers {seed.number}")
        if (folder / "flipped.json").is_file():
            return folder
        flips = random.Random(f"which answers {seed.number}")
        wrong = set(flips.sample(range(self.pool), round(self.flip * self.pool)))
        drawn = [_drawn(rng, number) for number in range(self.pool + self.validation)]
        parts = {
            "pool": [_record(folder, *one, wrong=number in wrong) for number, one in enumerate(drawn[: self.pool])],
            "right": [_record(folder, *one) for one in drawn[self.pool :]],
            "wrong": [_record(folder, *one, wrong=True) for one in drawn[self.pool :]],
        }
        for part, records in parts.items():
            write_records(folder / f"{part}.json", records)
        runs.write_json(folder / "flipped.json", sorted(wrong))
        return folder

    def tune(self, seed: Seed, arm: str, data: Path) -> Path:
        base = seed.folder.parent / "base" / "tune"
        return _tune(str(base) if self.base else "tiny-aligned", seed.folder, self.epochs, seed.number)

    def ask(self, seed: Seed, arm: str, model: Path) -> dict[str, Any]:
        begun, data, out = time.perf_counter(), seed.folder / "data", seed.folder / "score"
        scorers = (f"Random(seed={seed.number})", *SCORERS)
        files = {"pool": str(data / "pool.json"), "images": str(data / "images")}
        goal = {"targets": {TARGET: str(data / "right.json")}, "each_target": False}
        call("score", out, model=str(model), scorers=scorers, **files, **goal)
        table = read_table(out / SCORES)[0]
        scores = {one.name: table[f"{one.name}/{TARGET}"] for one in load_scorers(scorers)} | {LOSS: table["loss"]}
        flipped = set(runs.read_json(data / "flipped.json"))
        found = measured(scores, [uid in flipped for uid in range(self.pool)])
        learnt = {"accuracy": told_apart(model, data), "majority": 0.5}
        counts = {"train": self.pool, "validation": self.validation, "wrong": len(flipped), "not_scored": 0}
        seconds = {"scoring": time.perf_counter() - begun}
        metrics = {"seed": seed.number, **counts, **learnt, **found, "agreement": {}, "seconds": seconds}
        runs.write_json(seed.folder / METRICS, metrics)
        return metrics


def _drawn(rng: random.Random, number: int) -> tuple[str, str, Scene, Asked]:
    """Draw a question: its style, its name, its scene and itself."""
    style = weighted(rng, {STYLE_OF[source]: share for source, share in SOURCES.items() if source in STYLE_OF})
    return style, f"sample_{number:05d}", *draw_asked(style, rng)


def _record(folder: Path, style: str, name: str, scene: Scene, asked: Asked, wrong: bool = False) -> dict[str, object]:
    answer = asked.wrong if wrong else asked.answer
    return save_sample(folder, f"{name}.png", scene, name, asked.question, answer, style)


def _tune(model: str, folder: Path, epochs: float, seed: int) -> Path:
    """Tune a model on `folder/data/pool.json` into `folder/tune`."""
    out, data = folder / "tune", folder / "data"
    settings = replace(phase_preset("tiny-tune"), epochs=epochs, seed=seed)
    call("tune", out, model=model, settings=settings, data=str(data / "pool.json"), images=str(data / "images"))
    return out


def told_apart(model: Path, data: Path) -> float:
    """Return the share of validation questions whose right answer the model finds likelier than the wrong one."""
    subject, reading = open_subject(str(model)), Reading(data / "images")
    right, wrong = (
        sample_losses(subject, open_pool(subject, data / f"{part}.json", reading).samples)
        for part in ("right", "wrong")
    )
    return sum(right[uid] < wrong[uid] for uid in right) / len(right)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vlm_mislabel"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--base", type=int, default=600, help="clean samples that the base is tuned on; 0 for none")
    parser.add_argument("--pool", type=int, default=200, help="samples that are tuned on and scored")
    parser.add_argument("--validation", type=int, default=60, help="clean samples")
    parser.add_argument("--flip", type=float, default=0.2, help="share of the pool with a wrong answer")
    parser.add_argument("--epochs", type=float, default=3)
    given = parser.parse_args()
    open_folder(parser, given, ("seeds",))
    study = MislabelledAnswers(given.base, given.pool, given.validation, given.flip, given.epochs)
    seeds = [one[ARM] for one in study.run(given.out, given.seeds, [ARM])]
    title = f"{100 * given.flip:g} % of {given.pool} answers wrong, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    show_rates(given.out, title, seeds)


if __name__ == "__main__":
    main()
