"""What a cheaper score is worth: how near to the full one it comes, for what part of its time, and what a model that is
tuned on its choice gains over random choices.

    python recipes/frontier/frontier.py --seeds 0 1 --rounds 1 --out runs/frontier

Per seed a world and the packaged model, warmed up as `vlmsel choose` does it; its pool is scored by `vlmsel score` in
every way of `ways`, with the options that stand there. A way is measured against the full score of its seed by

    rho        Spearman's correlation of the influence on a target file's mean, per file, and their mean
    choice     share of the full score's choice that the way's choice has, by `vlmsel select`'s default rule
    top        the same by the rule `top`
    time       seconds of a way over those of the full score in the same round, median over seeds and rounds
    worth      mean accuracy over the four tasks of a model tuned on the way's choice, minus that of two random choices

The clock is the wall's, or the processor's on a machine that others use. A run that stopped goes on when repeated.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from tools.recipe_folder import open_folder
from vlmsel import runs
from vlmsel.commands.call import call
from vlmsel.data.world.files import TASKS, WorldSizes, benchmark_files, write_world
from vlmsel.models.config import resolve
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.scoring.affinity import NAME as AFFINITIES
from vlmsel.scoring.table import read_table
from vlmsel.studies.intervals import interval
from vlmsel.studies.study import RANDOM, draws_of
from vlmsel.training.phases import phase_preset

FULL, STORED, KEPT, LOSS, ALIGNED = "full", "store, rescored", "store, written", "Loss", "not warmed up"
PROXY = "half the layers"  # a smaller model in the place of the one that is tuned
WORTH, DRAWS = "worth", draws_of(RANDOM, 2)
HYPERINF = ("HyperINF(damping=10)",)  # `choose`'s
LAYERS, DEPTH = r"layers\.({})\..*lora", 4  # blocks of some layers; how many the packaged model has
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "processor": time.process_time}


def last(layers: int) -> dict[str, Any]:
    """Return the options of a score on the adapters of the last layers alone."""
    return {"blocks": LAYERS.format("|".join(str(DEPTH - 1 - back) for back in range(layers)))}


def fit(percent: float, pool: int) -> dict[str, Any]:
    """Return the options of a score whose curvature is fitted on a part of the pool."""
    return {"fit_samples": max(1, round(percent * pool / 100))}


def ways(pool: int) -> dict[str, dict[str, Any]]:
    """Return what is tried: row -> options of `vlmsel score`."""
    return {
        FULL: {},
        **{f"fit {percent} %": fit(percent, pool) for percent in (10, 5, 1)},
        "last 2 layers": last(2),
        "last layer": last(1),
        "projector": {"blocks": "projector"},
        "last 2 layers, fit 10 %": {**last(2), **fit(10, pool)},
        "16 columns": {"columns": 16},
        "means only": {"each_target": False},
        "means only, fit 10 %": {"each_target": False, **fit(10, pool)},
        "bfloat16": {"dtype": "bfloat16"},
        KEPT: {"store_projection": 16},
        STORED: {},
        ALIGNED: {},
        PROXY: {},
        "TracIn": {"scorers": ("TracIn",)},
        "DataInf": {"scorers": ("DataInf",)},
        "Hidden": {"scorers": ("Hidden",)},
        "Embedding": {"scorers": ("Embedding",)},
        "BM25": {"scorers": ("BM25",)},
    }


@dataclass(frozen=True)
class Frontier:
    """One world: where it lies, how large it is and how it is scored."""

    folder: Path
    seed: int
    pool: int
    target: int
    fraction: float
    clock: str
    tried: tuple[str, ...]
    questions: int = 0

    @property
    def files(self) -> dict[str, Any]:
        world = self.folder / "world"
        targets = {task: str(world / f"targets/{task}.json") for task in TASKS}
        return {"pool": str(world / "pool.json"), "images": str(world / "images"), "targets": targets}

    @property
    def warm(self) -> str:
        return str(self.folder / "warmup")

    def prepare(self) -> None:
        """Draw the world and warm the model up; score a little, so that imports are in nobody's time."""
        if not (self.folder / "world/world.json").is_file():
            write_world(self.folder / "world", WorldSizes(0, self.pool, self.target, max(1, self.questions)), self.seed)
        call("warmup", Path(self.warm), model="tiny-aligned", fraction=0.1, settings=self.settings, **self.files)
        if PROXY in self.tried:
            how = {"fraction": 0.1, "settings": self.settings, **self.files}
            call("warmup", self.folder / "warmup_proxy", model=str(halved(self.folder / "proxy")), **how)
        small = {**self.files, "pool": self.files["targets"]["pope"], "scorers": (*HYPERINF, "Hidden", "BM25")}
        call("score", self.folder / "lead-in", model=self.warm, **small)

    def score(self, row: str, options: Mapping[str, Any], out: Path) -> float:
        """Score the pool in one way; return the seconds it took, or had taken."""
        if not (out / "seconds.json").is_file():
            shutil.rmtree(out, ignore_errors=True)  # begun and stopped: what is left of it takes no way's time
            now = CLOCKS[self.clock]
            begin = now()
            if row == STORED:
                call("rescore", out, store=str(out.parent / KEPT / "store"), scorers=HYPERINF)
            else:
                kept = {"store": str(out / "store")} if row == KEPT else {}
                model = {ALIGNED: "tiny-aligned", PROXY: str(self.folder / "warmup_proxy")}.get(row, self.warm)
                call("score", out, **{"model": model, "scorers": HYPERINF, **self.files, **options, **kept})
            runs.write_json(out / "seconds.json", now() - begin)
        return float(runs.read_json(out / "seconds.json"))

    @property
    def settings(self) -> Any:
        """How the model is warmed up and tuned."""
        return replace(phase_preset("tiny-tune"), seed=self.seed)

    def chosen(self, scored: Path, scorer: str, rule: str | None) -> set[int]:
        """Return what is chosen by a score run."""
        out = _choice(scored, scorer, rule)
        how = {"scores": str(scored), "scorer": scorer, "fraction": self.fraction}
        call("select", out, pool=self.files["pool"], **how, **({"rule": rule} if rule else {}))
        return set(runs.read_json(Path(f"{out}.manifest.json"))["uids"])

    def fidelity(self, scored: Path, scorer: str, full: Path) -> dict[str, float | None]:
        """Return how near the score run of a way is to the full one."""
        own, whole = (read_table(run / "scores.parquet")[0] for run in (scored, full))
        found: dict[str, float | None] = {}
        for task in TASKS:
            loss = scorer == LOSS
            ranked = -own["loss"] if loss else own[f"{scorer}/{task}"]
            found[task] = float(spearmanr(ranked, whole[f"HyperINF/{task}"]).statistic)
        found["rho"] = sum(found[task] or 0.0 for task in TASKS) / len(TASKS)
        rules = {"choice": None, "top": "top"}
        if scorer == LOSS:  # it is no rule's, and chooses by itself
            rules = {"choice": None}
        elif not (scored / AFFINITIES).is_file():
            rules = {"top": "top"}
        for name, rule in rules.items():
            wanted = self.chosen(full, "HyperINF", rule)
            found[name] = len(self.chosen(scored, scorer, rule) & wanted) / len(wanted)
        return found

    def worth(self, rows: Mapping[str, Path]) -> dict[str, float]:
        """Tune on the choice of every row, and on random ones, and ask the models; return each row's gain in points."""
        choices = dict(rows)
        for number, draw in enumerate(DRAWS):
            choices[draw] = self.folder / "random" / f"{draw}.json"
            how = {"pool": self.files["pool"], "scorer": RANDOM, "seed": 1000 * self.seed + number}
            call("select", choices[draw], fraction=self.fraction, **how)
        tuned = {row: str(self.folder / "tune" / row) for row in choices}
        for row, data in choices.items():
            how = {"images": self.files["images"], "settings": self.settings}
            call("tune", Path(tuned[row]), model="tiny-aligned", data=str(data), **how)
        world, out = self.folder / "world", self.folder / "evaluate"
        tasks = {
            task: {"images": str(world / "images/test" / task), **files}
            for task, files in benchmark_files(world).items()
        }
        call("evaluate", out, models=tuned, tasks=tasks, protocol="bare", max_new_tokens=16)
        reached = {row: float(np.mean([_headline(out / row / task) for task in TASKS])) for row in choices}
        chance = sum(reached[draw] for draw in DRAWS) / len(DRAWS)
        return {row: reached[row] - chance for row in rows}

    def run(self, rounds: int) -> dict[str, dict[str, list[float | None]]]:
        """Score in every way, once per round; return row -> measure -> values."""
        self.prepare()
        tried = {row: options for row, options in ways(self.pool).items() if row == FULL or row in self.tried}
        found: dict[str, dict[str, list[float | None]]] = {}
        for number in range(rounds):
            at = self.folder / f"round{number}"
            seconds = {row: self.score(row, options, at / row) for row, options in tried.items()}
            for row, own in seconds.items():
                measures = found.setdefault(row, {"seconds": [], "time": []})
                measures["seconds"].append(own)
                measures["time"].append(own / seconds[FULL])
        at = self.folder / "round0"
        for row in tried:
            for name, value in self.fidelity(at / row, _scorer(row), at / FULL).items():
                found[row][name] = [value]
        losses = self.fidelity(at / FULL, LOSS, at / FULL)
        found[LOSS] = {name: [value] for name, value in losses.items()}
        if self.questions:
            places = {row: at / (FULL if row == LOSS else row) for row in found if "choice" in found[row]}
            choices = {row: _choice(place, _scorer(row), None) for row, place in places.items()}
            for row, gain in self.worth(choices).items():
                found[row][WORTH] = [gain]
        return found


SCORERS = ("TracIn", "DataInf", "Hidden", "Embedding", "BM25")


def _scorer(row: str) -> str:
    """Return whose scores a row's are."""
    return row if row in (*SCORERS, LOSS) else "HyperINF"


def _choice(scored: Path, scorer: str, rule: str | None) -> Path:
    return scored / f"chosen by {scorer}, {rule or 'by default'}.json"


def _headline(folder: Path) -> float:
    found = runs.read_json(folder / "metrics.json")
    return 100 * float(found["metrics"][found["headline"]])


def halved(folder: Path) -> Path:
    """Write the packaged model without the upper half of its language model's layers, and return the folder."""
    kept = tuple(f"layers.{number}." for number in range(DEPTH // 2))
    for source, weights in (("llama", "model.safetensors"), ("aligned", "adapter/adapter_model.safetensors")):
        own = folder / source
        shutil.copytree(resolve(f"assets:{source}"), own, dirs_exist_ok=True)
        every = load_file(own / weights)
        few = {name: every[name] for name in every if "layers." not in name or any(one in name for one in kept)}
        save_file(few, own / weights, metadata={"format": "pt"})
    llama, config = folder / "llama/config.json", folder / "aligned/vlmsel_config.json"
    runs.write_json(llama, runs.read_json(llama) | {"num_hidden_layers": DEPTH // 2})
    content = runs.read_json(config)
    known = {name: value for name, value in content["fingerprints"].items() if not name.startswith("language")}
    language = {"language": str((folder / "llama").absolute())}
    runs.write_json(config, content | {"model": content["model"] | language, "fingerprints": known})
    return folder / "aligned"


def gathered(seeds: list[dict[str, dict[str, list[float | None]]]]) -> dict[str, dict[str, list[float]]]:
    """Put the worlds' values side by side: row -> measure -> values."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for row, measures in seed.items():
            for name, values in measures.items():
                found.setdefault(row, {}).setdefault(name, []).extend(one for one in values if one is not None)
    return found


def rows(found: Mapping[str, Mapping[str, list[float]]]) -> list[list[str]]:
    """Return the table's cells, head first."""
    worth = any(WORTH in own for own in found.values())
    head = ["way", "seconds", "time", *TASKS, "rho", "least", "choice", "top", *([WORTH] if worth else [])]
    table = [head]
    for row, own in found.items():
        cells = [f"{median(own['seconds']):.1f}", f"{median(own['time']):.2f}"] if "time" in own else ["", ""]
        cells += [f"{np.mean(own[name]):.3f}" for name in (*TASKS, "rho")]
        cells.append(f"{min(min(own[task]) for task in TASKS):.3f}")
        cells += [f"{100 * np.mean(own[name]):.0f} %" if name in own else "" for name in ("choice", "top")]
        cells += [shown(own[WORTH], "+.1f") if WORTH in own else ""] if worth else []
        table.append([row, *cells])
    return table


def draw(found: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Draw every way's fidelity over its part of the time, and the goal: .9 at a third."""
    figure = Figure(figsize=(15 if any(WORTH in own for own in found.values()) else 11, 5))
    measures = {"rho": "rank correlation with the full score", "choice": "share of the full score's choice"}
    if any(WORTH in own for own in found.values()):
        measures[WORTH] = "points of accuracy above random choices"
    labels: list[Annotation] = []
    for axis, (name, label) in zip(figure.subplots(1, len(measures)), measures.items(), strict=True):
        for row, own in found.items():
            if "time" not in own or name not in own:
                continue
            at = (median(own["time"]), float(np.mean(own[name])))
            color = "tab:orange" if row in SCORERS else "tab:blue"
            half = interval(own[name])[1] if name == WORTH else None
            axis.errorbar(*at, yerr=half, fmt="o", color=color, elinewidth=0.6)
            labels.append(axis.annotate(row, at, xytext=(5, 3), textcoords="offset points", fontsize=7))
        axis.axvline(1 / 3, color="0.5", linestyle=":", linewidth=1)
        axis.axhline(0 if name == WORTH else 0.9, color="0.5", linestyle=":", linewidth=1)
        axis.set(xlabel="time, as a part of the full score's", ylabel=label, xlim=(0, 1.3 * axis.get_xlim()[1]))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    spread(labels, FigureCanvasAgg(figure).get_renderer())
    figure.savefig(path, dpi=120)


def spread(labels: Sequence[Annotation], renderer: RendererAgg) -> None:
    """Put every label beside its point where it lies on no earlier one, as near as there is such a place."""
    placed: list[Bbox] = []
    for label in labels:
        for step in range(40):  # right of the point, ever further above and below it
            label.set_position((5, 3 + 4 * (step + 1) // 2 * (-1) ** step))
            box = label.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in placed):
                break
        placed.append(box)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one world each")
    parser.add_argument("--rounds", type=int, default=2, help="timings of every way per world")
    parser.add_argument("--pool", type=int, default=1200)
    parser.add_argument("--target", type=int, default=40, help="samples per target file")
    parser.add_argument("--fraction", type=float, default=0.2, help="what is chosen for the comparison of choices")
    parser.add_argument("--questions", type=int, default=120, help="per task, of models tuned on choices; 0 for none")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="whose seconds")
    parser.add_argument("--ways", nargs="+", choices=list(ways(1)), default=list(ways(1)), help="what is tried")
    given = parser.parse_args()
    if STORED in given.ways and KEPT not in given.ways:
        parser.error(f"--ways {STORED!r} needs {KEPT!r}, which writes the store")
    open_folder(parser, given, ("seeds", "rounds", "ways"))
    how = (given.pool, given.target, given.fraction, given.clock, tuple(given.ways), given.questions)
    found = gathered([Frontier(given.out / f"seed{seed}", seed, *how).run(given.rounds) for seed in given.seeds])
    runs.write_json(given.out / "frontier.json", {"settings": vars(given) | {"out": str(given.out)}, "ways": found})
    runs.write_text(given.out / "frontier.md", as_markdown(rows(found)))
    draw(found, given.out / "frontier.png")
    print(f"\n{as_text(rows(found))}\n\n{given.out / 'frontier.md'}, frontier.json, frontier.png")


if __name__ == "__main__":
    main()
