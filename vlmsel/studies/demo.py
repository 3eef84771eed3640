"""The study of `vlmsel demo`: is what is chosen better than a random part of the embedded world's pool?

Per seed there are another world (pool, targets, benchmark), another order of training samples and other random
subsets; the aligned model is shared. Every step is an ordinary command on ordinary files.

    not tuned          the aligned model
    Random             random subsets, mean over draws
    same mixture       random subsets with as many samples of every source as `choose` takes, mean over draws
    top                lowest influence on each target file's mean by the scores of `choose`, equal parts by rank
    choose             what `vlmsel choose` chooses
    TracIn ... HyperINF   as `top`, by scores at the aligned model, which was not warmed up, or before alignment
    full_pool          the whole pool, with as many more steps
    rule scorer, model   every rule by every scorer at both models (`demo_rules`)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmsel.data.world.files import TASKS, WorldSizes, benchmark_files, write_world
from vlmsel.studies import demo_rules
from vlmsel.studies.study import MIXTURE, RANDOM, Seed, Study, draws_of
from vlmsel.training.phases import PhaseSettings, phase_preset

SCORERS = ("TracIn", "TracIn.scaled", "DataInf", "LiSSA", "HyperINF")
ALIGNED, UNALIGNED = "tiny-aligned", "tiny"
TOP, CHOSEN, FULL, BEFORE = "top", "choose", "full_pool", "not tuned"
ROWS = (BEFORE, RANDOM, MIXTURE, TOP, *SCORERS, *demo_rules.WAYS, CHOSEN, FULL)


@dataclass(frozen=True)
class DemoSettings:
    """How large the demo is.

    Attributes:
        captions: captions that the model is aligned on; 0 takes the aligned model inside the package.
        pool: samples in the instruction pool.
        target: samples per target set.
        questions: questions per benchmark.
        fraction: part of the pool that is chosen.
        warmup: part of the pool that the model is warmed up on before it is scored.
        draws: random subsets per seed, of either kind.
        mixture: tune on random subsets with the choice's mixture of sources too.
        scorers: tune on every scorer's choice for `targets` at the aligned model too, as the papers choose.
        unaligned: `scorers` score before alignment, by the gradients of the last block.
        rules: tune on what every rule of `demo_rules` chooses too.
        targets: the tasks that `scorers` select for. POPE is left out: the aligned model does it already, and there the
            largest gradients are those of wrong answers.
        align_epochs: passes over the captions.
        tune_epochs: passes over what was selected, the same for every model.
        fit_samples: samples that curvature is fitted on.
        damping: relative damping of these second-order scorers.
    """

    captions: int = 0
    pool: int = 1200
    target: int = 40
    questions: int = 120
    fraction: float = 0.2
    warmup: float = 0.1
    draws: int = 1
    mixture: bool = False
    scorers: bool = False
    unaligned: bool = False
    rules: bool = False
    targets: tuple[str, ...] = ("vqav2", "gqa", "textvqa")
    align_epochs: float = 2.0
    tune_epochs: float = 3.0
    fit_samples: int = 400
    damping: float = 0.1

    @property
    def arms(self) -> list[str]:
        """What models are tuned on, in the order of the table."""
        kinds = (RANDOM, MIXTURE) if self.mixture else (RANDOM,)
        drawn = [draw for kind in kinds for draw in draws_of(kind, self.draws)]
        more = [*(SCORERS if self.scorers else ()), *(demo_rules.WAYS if self.rules else ())]
        return [BEFORE, *drawn, TOP, *more, CHOSEN, FULL]


PRESETS = {
    "quick": DemoSettings(),
    "full": DemoSettings(
        captions=4000, pool=5000, target=100, questions=240, draws=2, mixture=True, scorers=True, fit_samples=1000
    ),
    "rules": DemoSettings(draws=3, mixture=True, rules=True),
    "papers": DemoSettings(scorers=True),
    "unaligned": DemoSettings(scorers=True, unaligned=True),
}


@dataclass(frozen=True)
class Demo(Study[Path | None, Path | str, None]):
    """One world per seed: score its pool, tune the aligned model on every choice and ask it the benchmarks.

    `call` runs the command of a name into a folder, with options. `worlds` is the folder of another demo whose aligned
    model, worlds and scores are taken over, for other parts of the same pools.
    """

    folder: Path
    settings: DemoSettings
    call: Callable[..., None]
    worlds: Path | None = None

    @property
    def aligned(self) -> str:
        """The model that all seeds share."""
        return str((self.worlds or self.folder) / "align") if self.settings.captions else ALIGNED

    def align(self) -> None:
        """Align the shared model, unless it is the package's or another demo's."""
        if not self.settings.captions or self.worlds is not None:
            return
        world = _world(self.folder / "captions", WorldSizes(self.settings.captions, 0, 0, 0), seed=0)
        phase = replace(phase_preset("tiny-align"), epochs=self.settings.align_epochs)
        files = {"data": str(world / "captions.json"), "images": str(world / "images")}
        self.call("align", self.folder / "align", **files, settings=phase)

    def prepare(self, seed: Seed) -> None:
        if self.worlds is not None:
            if not (self._made(seed) / "evaluate").is_dir():
                raise FileNotFoundError(f"{self._made(seed)}: no world was evaluated there; run that demo first")
            return
        settings = self.settings
        sizes = WorldSizes(0, settings.pool, settings.target, settings.questions)
        _world(seed.folder / "world", sizes, seed.number)
        how = {"fraction": settings.fraction, "warmup": settings.warmup, "settings": self._phase(seed)}
        self.call("choose", seed.folder / "choose", model=self.aligned, **how, **self._scored(seed))
        if settings.scorers:
            scorers, model = _scorers(settings.damping), UNALIGNED if settings.unaligned else self.aligned
            early = {"blocks": "last-block", "allow_untrained": True} if settings.unaligned else {}
            how = {"scorers": scorers, "each_target": False, **early, **self._scored(seed)}
            self.call("score", seed.folder / "score", model=model, **how)
        for name in demo_rules.MODELS if settings.rules else ():
            model = self.aligned if name == demo_rules.MODELS[0] else str(seed.folder / "choose" / "warmup")
            how = {"scorers": demo_rules.SCORERS, **self._scored(seed)}
            self.call("score", seed.folder / "rules" / name, model=model, **how)

    def subset(self, seed: Seed, arm: str) -> Path | None:
        made = self._made(seed)
        pool, chosen = made / "world" / "pool.json", made / "choose" / "chosen.json"
        if arm in (BEFORE, FULL) or (arm == CHOSEN and self.worlds is None):
            return {BEFORE: None, FULL: pool, CHOSEN: chosen}[arm]
        kind, _, draw = arm.rpartition(" ")
        options: dict[str, Any] = {"scores": str(made / "choose" / "score")}
        if arm == CHOSEN:
            options |= {"scorer": "HyperINF"}
        elif kind in (RANDOM, MIXTURE):
            like = {"like": str(self.subset(seed, CHOSEN))} if kind == MIXTURE else {}
            options |= {"scorer": "Random", "seed": 1000 * seed.number + int(draw), **like}
        elif arm in demo_rules.WAYS:
            options = demo_rules.WAYS[arm].options(made / "rules")
        elif arm == TOP:
            options |= {"scorer": "HyperINF", "rule": "top"}
        else:
            options |= {"scorer": arm, "rule": "top", "target": list(self.settings.targets)}
            options["scores"] = str(made / "score")
        out = seed.folder / "selected" / f"{arm}.json"
        self.call("select", out, pool=str(pool), fraction=self.settings.fraction, **options)
        return out

    def tune(self, seed: Seed, arm: str, data: Path | None) -> Path | str:
        tuned, images = self._model(seed, arm), str(self._made(seed) / "world" / "images")
        if data is None or (arm == FULL and self.worlds is not None):
            return tuned
        how = {"images": images, "settings": self._phase(seed)}
        self.call("tune", Path(tuned), model=self.aligned, data=str(data), **how)
        return tuned

    def ask(self, seed: Seed, arm: str, model: Path | str) -> None:
        """All models of a seed are asked together, see `conclude`."""

    def conclude(self, seed: Seed) -> None:
        """Evaluate the models of all arms: each is opened, and each picture hashed, once."""
        world, arms = self._made(seed) / "world", self.settings.arms
        tasks = {
            task: {"images": str(world / "images" / "test" / task), **files}
            for task, files in benchmark_files(world).items()
        }
        models = {one: str(self._model(seed, one)) for one in arms}
        how = {"protocol": "bare", "max_new_tokens": 16}  # answers are words
        self.call("evaluate", seed.folder / "evaluate", models=models, tasks=tasks, **how)

    def _model(self, seed: Seed, arm: str) -> Path | str:
        """Return where the model of an arm lies."""
        home = self._made(seed) if arm == FULL else seed.folder
        return self.aligned if arm == BEFORE else home / "tune" / arm

    def _made(self, seed: Seed) -> Path:
        """Return where a seed's world and scores lie, and the model of its whole pool."""
        return seed.folder if self.worlds is None else self.worlds / seed.folder.name

    def _phase(self, seed: Seed) -> PhaseSettings:
        return replace(phase_preset("tiny-tune"), epochs=self.settings.tune_epochs, seed=seed.number)

    def _scored(self, seed: Seed) -> dict[str, Any]:
        """Return how a seed's pool is scored."""
        world = seed.folder / "world"
        targets = {task: str(world / "targets" / f"{task}.json") for task in TASKS}
        files = {"pool": str(world / "pool.json"), "images": str(world / "images"), "targets": targets}
        return {**files, "fit_samples": self.settings.fit_samples, "seed": seed.number}


def _world(folder: Path, sizes: WorldSizes, seed: int) -> Path:
    """Draw a world into `folder` unless it lies there already."""
    if not (folder / "world.json").is_file():
        print(f"\n== drawing world {seed} -> {folder}", flush=True)
        write_world(folder, sizes, seed)
    return folder


def _scorers(damping: float) -> tuple[str, ...]:
    damped = (f"{name}(damping={damping})" for name in ("DataInf", "LiSSA", "HyperINF"))
    return ("TracIn", "TracIn(block_scale=True, name='TracIn.scaled')", *damped)
