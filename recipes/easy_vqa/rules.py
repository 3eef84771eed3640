"""easy-VQA: every rule by every scorer at the aligned and the warmed-up model, and random choices beside them.

    python recipes/easy_vqa/rules.py easy_vqa.tar.gz --seeds 10 11 12 --out runs/rules [--arms "Random 1" "Random 2"]
                                     [--trainings 5]

Per seed: other questions, other spoilt answers and another aligned model. The pool is scored at the aligned model and
after a warm-up on a tenth; the aligned model is tuned on 20 % of the pool, once per choice or several times in other
orders (`--trainings`, averaged), and asked 1,000 questions.
Every step is the ordinary command; a stopped study goes on when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tools.convert_easy_vqa import convert
from tools.recipe_folder import open_folder
from vlmsel import runs
from vlmsel.commands.call import call
from vlmsel.reporting.results import show_results
from vlmsel.studies.demo_rules import MODELS, SCORERS, WAYS
from vlmsel.studies.duel import choice_tokens
from vlmsel.studies.study import RANDOM, Seed, Study, draws_of, kind_of
from vlmsel.training.phases import phase_preset

TASK, FRACTION = "easy_vqa", 0.2
BEFORE, TOKENS = "not tuned", "Random of equal tokens"
ARMS = (BEFORE, *draws_of(RANDOM, 2), *draws_of(TOKENS, 2), *WAYS)
DEFAULT = WAYS["round_robin HyperINF, warmed up"]  # `vlmsel choose`


@dataclass(frozen=True)
class EasyVQA(Study[Path | None, Path, None]):
    """Score a seed's pool at both models; tune the aligned model on every choice and ask it."""

    archive: Path
    out: Path
    pool: int = 4000
    test: int = 1000
    targets: int = 200
    trainings: int = 1

    def data(self, seed: Seed) -> Path:
        return self.out / f"data{seed.number}"

    def prepare(self, seed: Seed) -> None:
        data = self.data(seed)
        if not (data / "annotations.json").is_file():
            convert(self.archive, data, seed.number, self.pool, test=self.test, targets=self.targets)
        files = {"pool": str(data / "pool.json"), "images": str(data / "images")}
        goals = {"targets": {TASK: str(data / "target.json")}, "seed": seed.number, **files}
        aligned, warm = seed.folder / "align", seed.folder / "warmup"
        phase = replace(phase_preset("tiny-align"), epochs=3, seed=seed.number)
        call("align", aligned, model="tiny", data=str(data / "captions.json"), images=files["images"], settings=phase)
        settings = replace(phase_preset("tiny-tune"), epochs=4, seed=seed.number)
        call("warmup", warm, model=str(aligned), fraction=0.1, settings=settings, **goals)
        for name, model in zip(MODELS, (aligned, warm), strict=True):
            call("score", seed.folder / "rules" / name, model=str(model), scorers=SCORERS, fit_samples=1000, **goals)

    def subset(self, seed: Seed, arm: str) -> Path | None:
        if arm == BEFORE:
            return None
        out, kind = seed.folder / "selected" / f"{arm}.json", kind_of(arm)
        how = WAYS.get(kind, DEFAULT).options(seed.folder / "rules")
        if kind not in WAYS:
            draw = 1 + (_number(arm) - 1) // self.trainings
            how = {"scores": how["scores"], "scorer": RANDOM, "seed": 1000 * seed.number + draw}
        how |= {"tokens": self._tokens(seed)} if kind == TOKENS else {"fraction": FRACTION}
        call("select", out, pool=str(self.data(seed) / "pool.json"), **how)
        return out

    def _tokens(self, seed: Seed) -> int:
        """Return how many tokens the default choice teaches."""
        chosen = self.subset(seed, DEFAULT.row)
        assert chosen is not None
        return choice_tokens(seed.folder / "rules" / DEFAULT.model, chosen)

    def tune(self, seed: Seed, arm: str, data: Path | None) -> Path:
        if data is None:
            return seed.folder / "align"
        out, images = seed.folder / "tune" / arm, str(self.data(seed) / "images")
        order = 1000 * ((_number(arm) - 1) % self.trainings)  # 0 for the first training, or the only one
        settings = replace(phase_preset("tiny-tune"), epochs=2, seed=seed.number + order)
        call("tune", out, model=str(seed.folder / "align"), data=str(data), images=images, settings=settings)
        return out

    def ask(self, seed: Seed, arm: str, model: Path) -> None:
        data = self.data(seed)
        files = {name: str(data / f"{name}.json") for name in ("questions", "annotations")}
        asked = {"task": "vqav2", "protocol": "bare", "images": str(data / "images" / "test"), **files}
        call("evaluate", seed.folder / "evaluate" / arm / TASK, model=str(model), **asked)


def _number(arm: str) -> int:
    """Return which of its kind an arm is, from 1."""
    last = arm.rpartition(" ")[2]
    return int(last) if last.isdigit() else 1


def trained(arms: Sequence[str], trainings: int) -> list[str]:
    """Return the arms with one for each training: trainings of one draw stand side by side, then those of the next.

    >>> trained(["not tuned", "Random 2", "round_robin BM25"], 2)
    ['not tuned', 'Random 3', 'Random 4', 'round_robin BM25 1', 'round_robin BM25 2']
    """
    if trainings == 1:
        return list(arms)
    found = []
    for arm in arms:
        first = 1 + trainings * (_number(arm) - 1)
        found += [arm] if arm == BEFORE else [f"{kind_of(arm)} {first + k}" for k in range(trainings)]
    return found


def spoilt(study: EasyVQA, seeds: list[int]) -> Mapping[str, list[float]]:
    """Return the share of spoilt answers in every choice, in percent, by seed; draws of one kind are averaged."""
    found: dict[str, list[float]] = {}
    for seed in (Seed(number, study.out / f"seed{number}") for number in seeds):
        truth = runs.read_json(study.data(seed) / "pool_truth.json")
        wrong = np.asarray([one["flaw"] != "none" for one in truth])
        own: dict[str, list[float]] = {"whole pool": [100 * float(wrong.mean())]}
        for path in sorted((seed.folder / "selected").glob("*.manifest.json")):
            uids = runs.read_json(path)["uids"]
            own.setdefault(kind_of(path.name.split(".json")[0]), []).append(100 * float(wrong[uids].mean()))
        for name, values in own.items():
            found.setdefault(name, []).append(sum(values) / len(values))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path, help="easy-VQA, packed")
    parser.add_argument("--out", type=Path, default=Path("runs/easy_vqa_rules"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--pool", type=int, default=4000, help="questions in the pool")
    parser.add_argument("--test", type=int, default=1000, help="questions asked")
    parser.add_argument("--targets", type=int, default=200, help="questions in the target file")
    parser.add_argument("--trainings", type=int, default=1, help="trainings per choice, averaged")
    given = parser.parse_args()
    open_folder(parser, given, ("seeds", "arms"))  # arms are numbered by their trainings
    study = EasyVQA(given.archive, given.out, given.pool, given.test, given.targets, given.trainings)
    study.run(given.out, given.seeds, trained(given.arms, given.trainings))
    show_results(given.out, "20 % of easy-VQA", [kind_of(arm) for arm in ARMS], {})
    for name, shares in spoilt(study, given.seeds).items():
        print(f"spoilt answers, {name}: {', '.join(f'{share:.1f}' for share in shares)} %")


if __name__ == "__main__":
    main()
