"""Identification with pictures: which training samples share the subject, or the style, of a test sample?

    python recipes/vlm_identification/study.py --out runs/vlm_identification --seeds 0 1 2 3 4

DataInf's image studies (Kwon et al. 2023, arXiv 2310.00902) generate pictures from texts; here they are turned round:
the packaged aligned model is tuned to describe drawn scenes, and every test sample is a target of its own.

    subject        ten things, such as a red circle, each alone in a picture, at any place and size, mostly with a sign
    style          scenes drawn as a cartoon, as pixel art or as a line sketch; the description does not say which
    style, named   the same, and the description begins with the style

A stopped study goes on when it is started again.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

from tools.identification_table import study as identified
from tools.identification_table import summary
from tools.recipe_folder import open_folder
from vlmsel import runs
from vlmsel.commands.call import call
from vlmsel.data.formats import write_records
from vlmsel.data.world.files import CAPTION_PROMPT, save_sample
from vlmsel.data.world.scenes import CANVAS, NAMES, Scene, describe, draw_scene
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.studies.intervals import differences
from vlmsel.studies.study import Seed, Study, gather
from vlmsel.training.phases import phase_preset

SUBJECT, STYLE, NAMED = ARMS = ("subject", "style", "style, named")
SUBJECTS = 10
BASE = "TracIn"
SCORERS = (
    BASE,
    "TracIn(block_scale=True, name='TracIn.scaled')",
    "TracIn(cosine=True, name='TracIn.cosine')",
    "DataInf",
    "LiSSA",
    "HyperINF(solver='cholesky')",
    "HyperINF(damping=10, solver='cholesky', name='HyperINF.10')",
    "Hidden",
    "Embedding",
    "BM25",
)
Measures = dict[str, dict[str, float]]  # scorer -> measure -> value


def pixel_art(image: Image.Image) -> Image.Image:
    return image.resize((CANVAS // 4,) * 2, Image.Resampling.BOX).resize((CANVAS,) * 2, Image.Resampling.NEAREST)


def line_sketch(image: Image.Image) -> Image.Image:
    return ImageOps.grayscale(image).filter(ImageFilter.CONTOUR).convert("RGB")


STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "cartoon": lambda image: image,
    "pixel art": pixel_art,
    "line sketch": line_sketch,
}


@dataclass(frozen=True)
class Identification(Study[Path, Path, Measures]):
    """Per seed and task: samples of every class, a model tuned on them, and how well its scores find the class."""

    train: int
    test: int
    epochs: float

    def kept(self, seed: Seed, arm: str) -> Measures | None:
        path = seed.folder / arm / "metrics.json"
        return runs.read_json(path) if path.is_file() else None

    def subset(self, seed: Seed, arm: str) -> Path:
        """Draw a task: `train.json` and `test.json`, with the class for the source."""
        folder, rng = seed.folder / arm / "data", random.Random(f"{arm} {seed.number}")
        if (folder / "test.json").is_file():
            return folder
        kinds = rng.sample(NAMES, SUBJECTS) if arm == SUBJECT else list(STYLES)
        for part, count in (("train", self.train), ("test", self.test)):
            names = [kinds[number % len(kinds)] for number in range(count)]
            write_records(folder / f"{part}.json", [_sample(folder, arm, part, *one, rng) for one in enumerate(names)])
        return folder

    def tune(self, seed: Seed, arm: str, data: Path) -> Path:
        settings, out = (
            replace(phase_preset("tiny-tune"), epochs=self.epochs, seed=seed.number),
            seed.folder / arm / "tune",
        )
        files = {"data": str(data / "train.json"), "images": str(data / "images")}
        call("tune", out, model="tiny-aligned", settings=settings, **files)
        return out

    def ask(self, seed: Seed, arm: str, model: Path) -> Measures:
        folder = seed.folder / arm
        data, test = folder / "data", folder / "data" / "test.json"
        files = {"pool": str(data / "train.json"), "images": str(data / "images"), "targets": {"test": str(test)}}
        call("score", folder / "score", model=str(model), scorers=SCORERS, columns=self.test, **files)
        found = identified(folder / "score" / "scores.parquet", test, "test")
        measures = {name: {key: one.mean for key, one in summary(each).items()} for name, each in found.items()}
        runs.write_json(folder / "metrics.json", measures)
        return measures


def _sample(folder: Path, arm: str, part: str, number: int, kind: str, rng: random.Random) -> dict[str, object]:
    """Draw one sample of a class, save its picture and return its record."""
    scene, name = draw_scene(rng, count=1 if arm == SUBJECT else None), f"{part}_{number:04d}"
    if arm == SUBJECT:
        scene = _showing(scene, kind)
    answer = f"{kind}: {describe(scene)}" if arm == NAMED else describe(scene)
    record = save_sample(folder, f"{name}.png", scene, name, CAPTION_PROMPT, answer, kind)
    if arm != SUBJECT:
        path = folder / "images" / f"{name}.png"
        STYLES[kind](Image.open(path)).save(path)
    return record


def _showing(scene: Scene, name: str) -> Scene:
    """Return the scene with another thing in its only thing's place."""
    color, shape = name.split()
    return replace(scene, things=(replace(scene.things[0], color=color, shape=shape),))


def table(seeds: Sequence[Measures]) -> list[list[str]]:
    """Return the table scorer x {AUC, recall} over seeds, recall's difference to TracIn's beside it, head first."""
    values = gather(seeds)
    rows = [["scorer", "AUC", "recall", f"recall - {BASE}"]]
    for scorer, row in values.items():
        gain = differences(row["recall"], values[BASE]["recall"])
        rows.append([scorer, *(shown(row[key], ".3f") for key in ("auc", "recall")), shown(gain, "+.3f")])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/vlm_identification"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--tasks", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--train", type=int, default=150, help="samples that are tuned on and scored, of all classes")
    parser.add_argument("--test", type=int, default=30, help="samples that are targets")
    parser.add_argument("--epochs", type=float, default=3)
    given = parser.parse_args()
    open_folder(parser, given, ("seeds", "tasks"))
    answers = Identification(given.train, given.test, given.epochs).run(given.out, given.seeds, given.tasks)
    for task in given.tasks:
        rows, classes = table([seed[task] for seed in answers]), SUBJECTS if task == SUBJECT else len(STYLES)
        runs.write_text(given.out / f"{task}.md", as_markdown(rows))
        print(
            f"\n{task}: {classes} classes, recall {1 / classes:.3f} by chance; {len(answers)} seeds\n\n{as_text(rows)}"
        )


if __name__ == "__main__":
    main()
