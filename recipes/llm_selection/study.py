"""Which part of HellaSwag should a small language model be tuned on? One seed of the study, or the table over seeds.

Per seed: other pool, target and test questions; one warm-up epoch on the pool; scores of the pool for the target set;
then, from the model before the warm-up, one model per scorer and fraction, one on the full pool, and all of them asked
the test questions. Every step is the ordinary command with the YAML file beside this one, in one process, because a
start costs as much as a small step. A stopped study goes on when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.convert_choices import convert
from vlmsel import cli, runs
from vlmsel.data.multiple_choice import read_choices
from vlmsel.reporting.results import result_rows
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.studies.study import MAJORITY, Seed, Study, read_evaluations

HERE = Path(__file__).parent
TASK = "hellaswag"
SCORERS = ("Random", "TracIn", "TracIn.scaled", "DataInf", "LiSSA", "HyperINF")
BEFORE, FULL = "untuned", "full_pool"
Table = dict[str, dict[str, list[float]]]


def run(command: str, yaml: str, out: Path, options: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Run one command with its YAML file; leave when it fails."""
    print(f"\n== vlmsel {command} -> {out}", flush=True)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    code = cli.main([command, "--config", str(HERE / f"{yaml}.yaml"), "--out", str(out), *words, *more])
    if code:
        sys.exit(code)


def label(scorer: str, fraction: float) -> str:
    return f"{scorer}-{100 * fraction:g}"


@dataclass(frozen=True)
class LanguageStudy(Study[Path | None, Path, None]):
    """Warm up on a seed's pool and score it; tune the model from before the warm-up on every choice and ask it."""

    args: argparse.Namespace
    choices: dict[str, tuple[str, float]]  # arm -> scorer and fraction
    more: list[str]  # further options of the trainings

    def prepare(self, seed: Seed) -> None:
        args, data = self.args, seed.folder / "data"
        if not (data / "pool.json").is_file():
            convert(TASK, args.questions, data, pool=args.pool, target=args.target, test=args.test, seed=seed.number)
        pool, warm = data / "pool.json", seed.folder / "warmup"
        self._train(seed, f"warmup_{args.method}", warm, pool)
        options = {"model": warm, "pool": pool, f"targets.{TASK}": data / "target.json", "seed": seed.number}
        run("score", "score", seed.folder / "score", options)

    def subset(self, seed: Seed, arm: str) -> Path | None:
        pool, out = seed.folder / "data/pool.json", seed.folder / "selected" / f"{arm}.json"
        if arm not in self.choices:
            return pool if arm == FULL else None
        scorer, fraction = self.choices[arm]
        table = seed.folder / "score/scores.parquet"
        run("select", "select", out, {"scores": table, "pool": pool, "scorer": scorer, "fraction": fraction})
        return out

    def tune(self, seed: Seed, arm: str, data: Path | None) -> Path:
        if data is None:
            return self.args.model
        return self._train(seed, f"tune_{self.args.method}", seed.folder / "tune" / arm, data)

    def ask(self, seed: Seed, arm: str, model: Path) -> None:
        options = {"model": model, "questions": seed.folder / "data/test.jsonl"}
        run("evaluate", "evaluate", seed.folder / "evaluate" / arm / TASK, options)

    def _train(self, seed: Seed, yaml: str, out: Path, data: Path) -> Path:
        options = {"model": self.args.model, "data": data, "settings.seed": seed.number}
        run("tune", yaml, out, options, self.more)
        return out


def log_likelihoods(folder: Path, names: list[str]) -> Table:
    """Return each model's mean log-likelihood of the right endings, in nats, per seed."""
    found: Table = {name: {TASK: []} for name in names}
    for seed in sorted(folder.glob("seed*")):
        right = {one.id: one.answer for one in read_choices(TASK, seed / "data/test.jsonl")}
        for name in names:
            lines = (seed / "evaluate" / name / TASK / "predictions.jsonl").read_text().splitlines()
            answers = {one["question_id"]: one["loglikelihoods"] for one in map(json.loads, lines)}
            values = [answers[key][place] for key, place in right.items() if place is not None]
            found[name][TASK].append(sum(values) / len(values))
    return found


def by_fraction(values: Table, fractions: list[float]) -> list[list[str]]:
    """Return the table scorer x fraction, each with its difference to Random, paired by seed."""
    whole = [name for name in (MAJORITY, BEFORE) if name in values]
    names = [*whole, *SCORERS, FULL]
    table = [[name] for name in ("", *names)]
    for fraction in fractions:
        own = {name: values[label(name, fraction) if name in SCORERS else name] for name in names}
        cells = result_rows(own, [TASK])
        cells[0][1:] = [f"{100 * fraction:g} %", "minus Random"]
        for line, more in zip(table, cells, strict=True):
            line += more[1:]
    return table


def show(folder: Path, fractions: list[float]) -> None:
    """Write and print accuracy and log-likelihood over the seeds that are there."""
    accuracy, _ = read_evaluations(folder)
    logs = log_likelihoods(folder, [name for name in accuracy if name != MAJORITY])
    seeds = len(accuracy[FULL][TASK])
    titles = (
        (accuracy, f"HellaSwag, accuracy in %, mean ± half of the 95 % interval over {seeds} seeds"),
        (logs, "log-likelihood of the right ending, nats"),
    )
    tables = [(title, by_fraction(values, fractions)) for values, title in titles]
    runs.write_text(folder / "table.md", "\n".join(f"{title}\n\n{as_markdown(table)}" for title, table in tables))
    runs.write_json(folder / "results.json", {"percent": accuracy, "log_likelihood": logs})
    for title, table in tables:
        print(f"\n{title}\n\n{as_text(table)}")
    print(f"\n{folder / 'table.md'}; untuned accuracy {shown(accuracy[BEFORE][TASK])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="HellaSwag's questions with their answers")
    parser.add_argument("model", help="the model to tune: the folder of a causal language model")
    parser.add_argument("--out", type=Path, default=Path("runs/llm_selection"))
    parser.add_argument("--method", choices=("dense", "lora"), default="dense", help="what is trained, and scored on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="show the seeds that are there instead of running one")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--target", type=int, default=300)
    parser.add_argument("--test", type=int, default=700)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.2])
    args, more = parser.parse_known_args()
    if args.table:
        show(args.out, args.fractions)
    else:
        choices = {label(scorer, fraction): (scorer, fraction) for fraction in args.fractions for scorer in SCORERS}
        LanguageStudy(args, choices, more).run(args.out, [args.seed], [*choices, FULL, BEFORE])


if __name__ == "__main__":
    main()
