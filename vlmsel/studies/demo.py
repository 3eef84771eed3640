"""The study of `vlmsel demo`: is what a scorer chooses better than a random part of the embedded world's pool?

Per seed there are another world (pool, targets, benchmark), another order of training samples and another random
subset; the aligned model is shared. Every step is an ordinary command on ordinary files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from vlmsel.data.world.files import TASKS, WorldSizes, benchmark_files, write_world
from vlmsel.studies.study import Seed, Study
from vlmsel.training.phases import phase_preset

SCORERS = ("Random", "TracIn", "TracIn.scaled", "DataInf", "LiSSA", "HyperINF")
FULL, BEFORE = "full_pool", "not tuned"
ARMS = (BEFORE, *SCORERS, FULL)


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        captions: captions for alignment.
        pool: samples in the instruction pool.
        target: samples per target set.
        questions: questions per benchmark.
        fraction: part of the pool that each scorer selects.
        targets: the tasks that it is selected for. POPE is left out: the aligned model does it already, and there the
            largest gradients are those of wrong answers. All four are scored and evaluated.
        align_epochs: passes over the captions.
        tune_epochs: passes over what was selected, the same for every model.
        fit_samples: samples that curvature is fitted on.
        damping: relative damping of the second-order scorers.
    """

    captions: int = 4000
    pool: int = 5000
    target: int = 100
    questions: int = 240
    fraction: float = 0.2
    targets: tuple[str, ...] = ("vqav2", "gqa", "textvqa")
    align_epochs: float = 2.0
    tune_epochs: float = 3.0
    fit_samples: int = 1000
    damping: float = 0.1


@dataclass(frozen=True)
class Demo(Study[Path | None, Path, None]):
    """One world per seed: score its pool, tune the aligned model on every choice and ask it the benchmarks.

    `call` runs the command of a name into a folder, with options.
    """

    folder: Path
    settings: DemoSettings
    call: Callable[..., None]

    def align(self) -> None:
        """Align the model that all seeds share."""
        world = _world(self.folder / "captions", WorldSizes(self.settings.captions, 0, 0, 0), seed=0)
        phase = replace(phase_preset("tiny-align"), epochs=self.settings.align_epochs)
        files = {"data": str(world / "captions.json"), "images": str(world / "images")}
        self.call("align", self.folder / "align", **files, settings=phase)

    def prepare(self, seed: Seed) -> None:
        sizes = WorldSizes(0, self.settings.pool, self.settings.target, self.settings.questions)
        world = _world(seed.folder / "world", sizes, seed.number)
        self.call(
            "score",
            seed.folder / "score",
            model=str(self.folder / "align"),
            pool=str(world / "pool.json"),
            images=str(world / "images"),
            targets={task: str(world / "targets" / f"{task}.json") for task in TASKS},
            scorers=_scorers(seed.number, self.settings.damping),
            fit_samples=self.settings.fit_samples,
            each_target=False,
            seed=seed.number,
        )

    def subset(self, seed: Seed, arm: str) -> Path | None:
        pool, out = seed.folder / "world" / "pool.json", seed.folder / "selected" / f"{arm}.json"
        if arm in (BEFORE, FULL):
            return pool if arm == FULL else None
        files = {"scores": str(seed.folder / "score" / "scores.parquet"), "pool": str(pool)}
        targets = list(self.settings.targets)
        self.call("select", out, **files, scorer=arm, rule="top", target=targets, fraction=self.settings.fraction)
        return out

    def tune(self, seed: Seed, arm: str, data: Path | None) -> Path:
        aligned, tuned = self.folder / "align", seed.folder / "tune" / arm
        if data is None:
            return aligned
        phase = replace(phase_preset("tiny-tune"), epochs=self.settings.tune_epochs, seed=seed.number)
        images = str(seed.folder / "world" / "images")
        self.call("tune", tuned, model=str(aligned), data=str(data), images=images, settings=phase)
        return tuned

    def ask(self, seed: Seed, arm: str, model: Path) -> None:
        world = seed.folder / "world"
        for task, files in benchmark_files(world).items():
            images, out = str(world / "images" / "test" / task), seed.folder / "evaluate" / arm / task
            how = {"protocol": "bare", "max_new_tokens": 16}  # answers are words
            self.call("evaluate", out, model=str(model), task=task, images=images, **how, **files)


def _world(folder: Path, sizes: WorldSizes, seed: int) -> Path:
    """Draw a world into `folder` unless it lies there already."""
    if not (folder / "world.json").is_file():
        print(f"\n== drawing world {seed} -> {folder}", flush=True)
        write_world(folder, sizes, seed)
    return folder


def _scorers(seed: int, damping: float) -> tuple[str, ...]:
    damped = (f"{name}(damping={damping})" for name in ("DataInf", "LiSSA", "HyperINF"))
    return (f"Random(seed={seed})", "TracIn", "TracIn(block_scale=True, name='TracIn.scaled')", *damped)
