"""Print how well each scorer finds the training samples of a test sample's class, and write it beside the scores.

    python tools/identification_table.py runs/score/scores.parquet --test grammars_test.json [--target test]

The scores are those of `vlmsel score --targets.test grammars_test.json`, by single test samples
(`affinity.safetensors` beside the table); `source` is the class in both files.
AUC and recall are those of DataInf's study (vlmsel/studies/identification.py). Writes
`identification.md`, the table, and `identification.json`, the numbers of every class and test sample.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmsel import runs
from vlmsel.data.formats import read_samples
from vlmsel.scoring.affinity import NAME, Affinities
from vlmsel.scoring.table import read_table
from vlmsel.studies.identification import Identified, Spread, by_class, identify, summary

HEAD = """\
| scorer | AUC | standard error | recall | standard error |
|---|---|---|---|---|
"""


def study(scores: Path, test: Path, target: str) -> dict[str, list[Identified]]:
    """Measure every scorer whose affinities lie beside a table; training samples without scores are left out and
    counted.

    Raises:
        ValueError: table and test file do not belong together.
    """
    columns, _ = read_table(scores)
    samples = {sample.uid: sample.source for sample in read_samples(test).samples}
    found = Affinities(scores.parent / NAME)
    rows = [row for row, one in enumerate(found.targets) if one["file"] == target]
    if not rows:
        files = ", ".join(dict.fromkeys(one["file"] for one in found.targets))
        raise ValueError(f"{found.path}: no samples of a target {target!r}; it has {files}")
    uids = [found.targets[row]["uid"] for row in rows]
    if strange := [uid for uid in uids if uid not in samples]:
        raise ValueError(f"{test}: has no usable sample {strange[0]}, which {scores} has scores on; give its test file")
    if lacking := len(columns["uid"]) - len(found.uids):
        print(f"{scores}: {lacking} training samples without scores are left out")
    kinds, own = columns["source"][found.uids].tolist(), [samples[uid] for uid in uids]
    influences = {name: -found.block(name, slice(None), unit=False)[rows] for name in found.about["scorers"]}
    return {name: identify(list(one), kinds, own) for name, one in influences.items()}


def shown(spread: Spread) -> str:
    """Write `0.950 ± 0.060`, mean and standard deviation."""
    return f"{spread.mean:.3f} ± {spread.deviation:.3f}"


def as_markdown(found: Mapping[str, Sequence[Identified]]) -> str:
    """Return the table scorer x {AUC, recall}: mean ± standard deviation over test samples, and standard errors."""
    rows = []
    for scorer, each in found.items():
        auc, recall = summary(each)["auc"], summary(each)["recall"]
        rows.append(f"| {scorer} | {shown(auc)} | {auc.error:.3f} | {shown(recall)} | {recall.error:.3f} |")
    count = len(next(iter(found.values())))
    return f"{HEAD}" + "\n".join(rows) + f"\n\nMean ± standard deviation over {count} test samples, of -I.\n"


def as_json(found: Mapping[str, Sequence[Identified]]) -> dict[str, Any]:
    """Return all numbers, JSON-able."""
    return {
        scorer: {
            "summary": {name: asdict(spread) for name, spread in summary(each).items()},
            "by_class": {
                kind: {name: asdict(spread) for name, spread in spreads.items()}
                for kind, spreads in by_class(each).items()
            },
            "test_samples": [one._asdict() for one in each],
        }
        for scorer, each in found.items()
    }


def main() -> None:
    """Print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", type=Path)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--target", default="test", help="the name that the test file was scored under")
    args = parser.parse_args()
    try:
        found = study(args.scores, args.test, args.target)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    table = as_markdown(found)
    runs.write_text(args.scores.parent / "identification.md", table)
    runs.write_json(args.scores.parent / "identification.json", as_json(found))
    print(table, end="")


if __name__ == "__main__":
    main()
