"""Which part of QASC, HellaSwag, PIQA or LogiQA should a small language model be tuned on? One seed, or the table.

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

from yaml import safe_load

from tools.convert_choices import convert
from tools.recipe_folder import open_folder
from vlmsel import cli, runs
from vlmsel.data.multiple_choice import TASKS, read_choices
from vlmsel.reporting.results import result_rows
from vlmsel.reporting.tables import as_markdown, as_text, shown
from vlmsel.scorers.load import load_scorers
from vlmsel.studies.duel import choice_tokens
from vlmsel.studies.study import MAJORITY, RANDOM, Seed, Study, draws_of, kind_of, read_evaluations

HERE = Path(__file__).parent
TOP = ("TracIn", "TracIn.scaled", "DataInf", "LiSSA", "HyperINF")
EQUAL, DEFAULT = "Random of equal tokens", "round robin, HyperINF"
SCORED, ALIGNED = "score", "score, not warmed up"  # a seed's score runs: of the model after the warm-up, and before it
BY_RULE = {  # what is chosen by scores of either model: row -> options of select
    **{f"round robin, {name}": {"scorer": name} for name in ("TracIn", "Hidden")},
    DEFAULT: {"scorer": "HyperINF.10"},  # the default of `vlmsel choose`
    "herding, HyperINF": {"scorer": "HyperINF.10", "rule": "herding"},
    "top, HyperINF": {"scorer": "HyperINF.10", "rule": "top"},
    "largest loss": {"scorer": "Loss"},
}
ROWS: dict[str, dict[str, Any]] = {  # row of the table -> options of select
    RANDOM: {"scorer": RANDOM},
    **{name: {"scorer": name, "rule": "top"} for name in TOP},
    "round robin, BM25": {"scorer": "BM25"},
    **BY_RULE,
    **{f"{row}, not warmed up": {**how, "scores": ALIGNED} for row, how in BY_RULE.items()},
    EQUAL: {"scorer": RANDOM},  # as many supervised tokens as the default's choice
}
DRAWS = 2  # of either kind of random choice, averaged
BEFORE, FULL = "untuned", "full_pool"
Table = dict[str, dict[str, list[float]]]


def run(command: str, yaml: str | None, out: Path, options: Mapping[str, Any], more: Sequence[str] = ()) -> None:
    """Run one command, with its YAML file where it has one; leave when it fails."""
    print(f"\n== vlmsel {command} -> {out}", flush=True)
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    config = [] if yaml is None else ["--config", str(HERE / f"{yaml}.yaml")]
    code = cli.main([command, *config, "--out", str(out), *words, *more])
    if code:
        sys.exit(code)


def label(row: str, fraction: float) -> str:
    return f"{row}-{100 * fraction:g}"


def arms(fractions: Sequence[float], seed: int, rows: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what is chosen: arm -> options of select."""
    found: dict[str, dict[str, Any]] = {}
    for fraction in fractions:
        for row in rows:
            name, how = label(row, fraction), {**ROWS[row], "fraction": fraction}
            if row in (RANDOM, EQUAL):
                found |= {one: {**how, "seed": DRAWS * seed + k} for k, one in enumerate(draws_of(name, DRAWS))}
            else:
                found[name] = how
    return found


@dataclass(frozen=True)
class LanguageStudy(Study[Path | None, Path, None]):
    """Warm up on a seed's pool and score it; tune the model from before the warm-up on every choice and ask it."""

    args: argparse.Namespace
    choices: dict[str, dict[str, Any]]  # arm -> options of select
    more: list[str]  # further options of the trainings

    def prepare(self, seed: Seed) -> None:
        args, data = self.args, seed.folder / "data"
        if not (data / "pool.json").is_file():
            sizes = {"pool": args.pool, "target": args.target, "test": args.test, "longest": args.longest}
            convert(args.task, args.questions, data, args.labels, seed=seed.number, **sizes)
        pool, warm = data / "pool.json", seed.folder / "warmup"
        self._train(seed, f"warmup_{args.method}", warm, pool)
        for name, model in ((SCORED, warm), (ALIGNED, args.model)):
            if rows := [row for row in _with_default(args.rows) if ROWS[row].get("scores", SCORED) == name]:
                options = {"model": model, "pool": pool, f"targets.{args.task}": data / "target.json"}
                options |= {"seed": seed.number, "scorers": _scorers(rows)}
                run("score", "score", seed.folder / name, options)

    def subset(self, seed: Seed, arm: str) -> Path | None:
        pool, out = seed.folder / "data/pool.json", seed.folder / "selected" / f"{arm}.json"
        if arm not in self.choices:
            return pool if arm == FULL else None
        how = {"scores": SCORED, **self.choices[arm]}
        if kind_of(arm).startswith(EQUAL):
            how["tokens"] = self._tokens(seed, how.pop("fraction"))
        run("select", None, out, {"pool": pool, **how, "scores": seed.folder / how["scores"]})
        return out

    def _tokens(self, seed: Seed, fraction: float) -> int:
        """Return how many tokens the default choice teaches."""
        chosen = self.subset(seed, label(DEFAULT, fraction))
        assert chosen is not None
        return choice_tokens(seed.folder / SCORED, chosen)

    def tune(self, seed: Seed, arm: str, data: Path | None) -> Path:
        if data is None:
            return self.args.model
        return self._train(seed, f"tune_{self.args.method}", seed.folder / "tune" / arm, data)

    def ask(self, seed: Seed, arm: str, model: Path) -> None:
        task, (questions, labels) = self.args.task, asked(seed.folder / "data")
        options = {"model": model, "task": task, "questions": questions}
        options |= {} if labels is None else {"annotations": labels}
        run("evaluate", "evaluate", seed.folder / "evaluate" / arm / task, options)

    def _train(self, seed: Seed, yaml: str, out: Path, data: Path) -> Path:
        options = {"model": self.args.model, "data": data, "settings.seed": seed.number}
        run("tune", yaml, out, options, self.more)
        return out


def asked(data: Path) -> tuple[Path, Path | None]:
    """Return the test questions of a seed, and the file of their labels where the task has one."""
    text, labels = data / "test.txt", data / "test-labels.lst"
    return text if text.is_file() else data / "test.jsonl", labels if labels.is_file() else None


def _with_default(rows: Sequence[str]) -> list[str]:
    """Return the rows whose choices are needed: the default's too, where a random choice is to have its tokens."""
    return list(dict.fromkeys((*rows, *([DEFAULT] if EQUAL in rows else []))))


def _scorers(rows: Sequence[str]) -> str:
    """Return those scorers of `score.yaml` that some rows need, as an option; one where they need its table alone."""
    specs = safe_load((HERE / "score.yaml").read_text())["scorers"]
    wanted = {ROWS[row]["scorer"] for row in rows}
    return json.dumps([spec for spec in specs if load_scorers((spec,))[0].name in wanted] or specs[:1])


def log_likelihoods(folder: Path, task: str, names: list[str]) -> Table:
    """Return each model's mean log-likelihood of the right endings, in nats, per seed."""
    found: Table = {name: {task: []} for name in names}
    for seed in sorted(folder.glob("seed*")):
        right = {one.id: one.answer for one in read_choices(task, *asked(seed / "data"))}
        for name in names:
            values = []
            for path in sorted((seed / "evaluate").glob(f"*/{task}/predictions.jsonl")):
                if kind_of(path.parts[-3]) != name:
                    continue
                answers = {
                    one["question_id"]: one["loglikelihoods"] for one in map(json.loads, path.read_text().splitlines())
                }
                values += [answers[key][place] for key, place in right.items() if place is not None]
            found[name][task].append(sum(values) / len(values))
    return found


def by_fraction(values: Table, task: str, fractions: list[float]) -> list[list[str]]:
    """Return the table scorer x fraction, each with its difference to Random, paired by seed."""
    whole = [name for name in (MAJORITY, BEFORE) if name in values]
    rows = [row for row in ROWS if label(row, fractions[0]) in values]
    names = [*whole, *rows, FULL]
    table = [[name] for name in ("", *names)]
    for fraction in fractions:
        own = {name: values[label(name, fraction) if name in ROWS else name] for name in names}
        cells = result_rows(own, [task])
        cells[0][1:] = [f"{100 * fraction:g} %", "minus Random"]
        for line, more in zip(table, cells, strict=True):
            line += more[1:]
    return table


def show(folder: Path, fractions: list[float]) -> None:
    """Write and print accuracy and log-likelihood over the seeds that are there."""
    accuracy, (task,) = read_evaluations(folder)
    logs = log_likelihoods(folder, task, [name for name in accuracy if name != MAJORITY])
    seeds = len(accuracy[FULL][task])
    titles = (
        (accuracy, f"{task}, accuracy in %, mean ± half of the 95 % interval over {seeds} seeds"),
        (logs, "log-likelihood of the right ending, nats"),
    )
    tables = [(title, by_fraction(values, task, fractions)) for values, title in titles]
    runs.write_text(folder / "table.md", "\n".join(f"{title}\n\n{as_markdown(table)}" for title, table in tables))
    runs.write_json(folder / "results.json", {"percent": accuracy, "log_likelihood": logs})
    for title, table in tables:
        print(f"\n{title}\n\n{as_text(table)}")
    print(f"\n{folder / 'table.md'}; untuned accuracy {shown(accuracy[BEFORE][task])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="the official file, with answers")
    parser.add_argument("model", help="the model to tune: the folder of a causal language model")
    parser.add_argument("--task", choices=TASKS, default="hellaswag")
    parser.add_argument("--labels", type=Path, help="PIQA's file of labels")
    parser.add_argument("--out", type=Path, default=Path("runs/llm_selection"))
    parser.add_argument("--method", choices=("dense", "lora"), default="dense", help="what is trained, and scored on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="show the seeds that are there instead of running one")
    parser.add_argument("--pool", type=int, default=2000)
    parser.add_argument("--target", type=int, default=300)
    parser.add_argument("--test", type=int, default=700)
    parser.add_argument("--longest", type=int, help="leave out questions of more characters with their longest choice")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="what is chosen; all rows")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.05, 0.2])
    args, more = parser.parse_known_args()
    early = [row for row in ROWS if ROWS[row].get("scores") == ALIGNED]
    if args.rows is None:
        args.rows = [row for row in ROWS if args.method == "dense" or row not in early]
    if args.method == "lora" and (row := next((row for row in args.rows if row in early), None)):
        parser.error(f"{row}: before the warm-up there are no adapters to score on; take --method dense")
    if args.table:
        show(args.out, args.fractions)
    else:
        grows = ("seed", "table", "rows", "fractions")
        open_folder(parser, argparse.Namespace(**vars(args), more=more), grows, f"seed{args.seed}")
        choices = arms(args.fractions, args.seed, args.rows)
        LanguageStudy(args, choices, more).run(args.out, [args.seed], [*choices, FULL, BEFORE])


if __name__ == "__main__":
    main()
