"""Run folders made by hand: a scored pool with affinities, choices, verdict, results and what was left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vlmsel import runs
from vlmsel.scoring.affinity import Columns, write_affinities
from vlmsel.scoring.table import write_table

HOSTILE = "</details></script><script>alert('x')</script><img src=x onerror=alert(1)>\" onload=\"x"
SCORERS, TARGETS = ("HyperINF", "TracIn", "Random"), ("gqa", "pope")


def record(uid, text="What is it?", image=True, answer="a thing"):
    turns = [{"from": "human", "value": ("<image>\n" if image else "") + text}, {"from": "gpt", "value": answer}]
    return {"id": uid, "source": ("a", "b")[uid % 2], "conversations": turns} | ({"image": "p.png"} if image else {})


def begin(folder: Path, command: str, **settings) -> Path:
    """Write what every run folder has."""
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_text(folder / "config.yaml", f"# vlmsel {command}\n{json.dumps(settings)}\n")
    runs.write_json(folder / "environment.json", {"python": "3", "vlmsel": "0"})
    return folder


def make_pool(folder: Path, count: int, hostile: int | None = 0) -> Path:
    """Write pool, target file and a picture; one record of the pool may be hostile."""
    folder.mkdir(parents=True)
    records = [record(uid, HOSTILE if uid == hostile else f"question {uid}?", uid % 3 > 0) for uid in range(count)]
    if hostile is not None:
        records[hostile]["source"] = HOSTILE
    runs.write_json(folder / "pool.json", records)
    for name in TARGETS:
        runs.write_json(folder / f"{name}.json", [record(uid, f"wanted by {name} {uid}") for uid in range(3)])
    Image.new("RGB", (400, 300), "red").save(folder / "p.png")
    return folder


def make_scored(folder: Path, data: Path, count: int, missing: tuple[int, ...] = ()) -> Path:
    """Write a run of score: random influences, and affinities to three samples of each target file."""
    rng = np.random.default_rng(0)
    files = {name: str(data / f"{name}.json") for name in TARGETS}
    begin(folder, "score", pool=str(data / "pool.json"), images=str(data), targets=files)
    keep = np.ones(count, bool)
    keep[list(missing)] = False
    sources = [one["source"] for one in runs.read_json(data / "pool.json")]
    columns = {"uid": np.arange(count), "source": sources, "tokens": rng.integers(10, 90, count)}
    columns |= {"supervised": rng.integers(1, 9, count), "loss": np.where(keep, rng.gamma(2, size=count), np.nan)}
    for scorer in SCORERS:
        for target in TARGETS:
            columns[f"{scorer}/{target}"] = np.where(keep, rng.normal(size=count), np.nan)
    about = {"pool": str(data / "pool.json"), "pool_sha256": runs.file_hash(data / "pool.json"), "config": ""}
    block = {"damping": 0.1, "bound": 20.0, "residuals": [3.0, 0.5, 1e-3], "converged": True, "refinements": 2}
    write_table(folder / "scores.parquet", columns, about | {"details": {"HyperINF": {"layer": block}}})
    uids, targets = np.flatnonzero(keep), [(name, uid) for name in TARGETS for uid in range(3)]
    c, u = rng.normal(size=(len(uids), 4)), rng.normal(size=(6, 4))
    own = Columns(c, u, np.linalg.norm(c, axis=1), np.linalg.norm(u, axis=1))
    known = [{"file": name, "uid": uid, "weight": None, "loss": 1.5} for name, uid in targets]
    write_affinities(folder / "affinity.safetensors", uids, known, {"HyperINF": own}, about)
    if missing:
        skipped = [{"uid": uid, "reason": f"image {HOSTILE!r} is missing in pics/{uid}"} for uid in missing]
        runs.write_json(folder / "skipped.json", skipped)
    return folder


def make_choice(path: Path, data: Path, uids: list[int], scorer: str = "HyperINF") -> Path:
    """Write the manifest of a choice, taken by the target samples in turn."""
    takers = [(name, uid) for uid in range(3) for name in TARGETS]
    found = {"pool_sha256": runs.file_hash(data / "pool.json"), "scorer": scorer, "uids": uids}
    if scorer != "Random":
        turns = [takers[i % 6] for i in range(len(uids))]
        found |= {"rule": "round_robin", "affinity": [0.5] * len(uids)}
        found |= {"target_file": [name for name, _ in turns], "target_uid": [uid for _, uid in turns]}
    runs.write_json(f"{path}.manifest.json", found)
    return path.parent


def make_detection(folder: Path, likely: dict[str, str]) -> Path:
    """Write a finished run of detect over two classes, one of them hostile."""
    begin(folder, "detect", train="t.csv")
    results = {"title": "t.csv: 4 samples", "rank_by": "TracIn", "seeds": 1}
    results |= {"validation": {"accuracy": [0.9], "majority": [0.5]}, "curves": {"TracIn": [[0.0] * 50 + [1.0] * 51]}}
    rates = {"recall_20": [0.5], "recall_40": [0.75], "auc": [0.8], "average_precision": [0.6]}
    runs.write_json(folder / "results.json", {**results, "detection": {"TracIn": rates}})
    head = ["rank", "uid", "given_label", *likely, "suspicion", "score", "seeds", "text"]
    rows = [
        [i + 1, 10 + i, ("a", HOSTILE)[i % 2], *likely.values(), 1 - i / 4, 2.5, 1, f"{HOSTILE} {i}"] for i in range(4)
    ]
    runs.write_csv(folder / "suspects.csv", [head, *rows])
    return folder
