"""A check-up of a pool or a checkpoint before anything long is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmsel import progress, runs
from vlmsel.data.check_up import FAULTS, CheckUp, check_up
from vlmsel.data.dataset import WHOLE, Reading
from vlmsel.data.formats import Pool, read_samples, write_part
from vlmsel.models.open import open_subject
from vlmsel.reporting.checkpoint import is_checkpoint, read_checkpoint
from vlmsel.reporting.tables import as_text

POSITIONAL = "path"
SHOWN = 8  # sources


def inspect(
    path: str,
    images: str | None = None,
    model: str | None = None,
    max_length: int = 2048,
    against: str | list[str] | None = None,
    json: str | None = None,
    write_clean: str | None = None,
    check_base: bool = False,
    config: str = "",
) -> None:
    """Say what a pool or a checkpoint is made of and what is wrong with it.

    Args:
        path: the file of a pool, or the folder of a model; it may stand before the options, without a name.
        images: the image folder; without it only pictures are looked at that lie in the pool or where it says.
        model: a model whose tokenizer tells which samples would lose supervised tokens at `max_length`.
        max_length: longest sequence in tokens, as for `vlmsel score`.
        against: an evaluation file (JSON or JSON lines), or a list of them: samples that ask their
            questions are contaminated.
        json: a file to write all of it to, with every fault by uid.
        write_clean: a file of the pool's form to write without unreadable records, missing or broken pictures, empty
            answers, exact duplicates and contaminated samples.
        check_base: of a checkpoint, load its base and check that it is the one it was made for.
        config: the resolved configuration as text.
    """
    folder = Path(path)
    if is_checkpoint(folder):
        found = read_checkpoint(folder)
        print("\n".join(_checkpoint_lines(found)))
        if check_base:
            open_subject(path, "cpu")
            print("base: found, and not another than the one that it was made for")
    else:
        if write_clean is not None and Path(write_clean).resolve() == folder.resolve():
            raise ValueError(f"{write_clean}: --write_clean would replace the pool; choose another name")
        pool = read_samples(path)
        looked = check_up(pool, images, [against] if isinstance(against, str) else against or ())
        if model is not None:
            _lost(looked, pool, model, Reading(Path(images) if images else None, max_length))
        found, images = looked.to_json(), images or ("DIR" if looked.not_looked_at else None)
        blind = {"contaminated": against is None, "loses tokens": model is None}
        print("\n".join(_pool_lines(path, looked, [kind for kind, left in blind.items() if left])))
        if write_clean is not None:
            dropped = looked.dropped()
            kept = [uid for uid in range(looked.total) if uid not in dropped]
            write_part(write_clean, path, kept)
            print(f"{write_clean}: {len(kept)} of {looked.total} records")
    if json is not None:
        runs.write_json(json, found)
    dirty = is_checkpoint(folder) or bool(looked.dropped())
    progress.ended(then=_next(path, images, write_clean if dirty else path, is_checkpoint(folder)))


def _next(path: str, images: str | None, clean: str | None, model: bool) -> str:
    """Say what to type after a check-up."""
    if model:
        return f"vlmsel score --model {path} --pool POOL --targets.NAME FILE --out RUN"
    pictures = f" --images {images}" if images else ""
    if clean is None:
        return f"vlmsel inspect {path}{pictures} --write_clean CLEAN{Path(path).suffix}"
    return f"vlmsel choose --model MODEL --pool {clean}{pictures} --targets.NAME FILE --fraction 0.05 --out RUN"


def _lost(looked: CheckUp, pool: Pool, model: str, reading: Reading) -> None:
    """Note samples whose supervised tokens do not all fit, or that the model cannot read, with the reason."""
    subject, dropped = open_subject(model, "cpu"), looked.dropped()
    longest = subject.longest(reading)
    for sample in pool.samples:
        if sample.uid in dropped:
            continue
        try:
            whole = subject.size(sample, replace(reading, max_length=WHOLE)).supervised
            left = subject.size(sample, reading).supervised
        except ValueError as reason:
            looked.faults["loses tokens"][sample.uid] = str(reason)
            continue
        if left < whole:
            looked.faults["loses tokens"][sample.uid] = f"keeps {left} of {whole} supervised tokens at {longest}"


def _pool_lines(path: str, looked: CheckUp, blind: list[str]) -> list[str]:
    sources = list(looked.counts["sources"].items())
    more = f" and {len(sources) - SHOWN} more" if len(sources) > SHOWN else ""
    words = ", ".join(f"{name} {value:g}" for name, value in looked.lengths.items())
    rows, fine = [["fault", "samples", "the first"]], [kind for kind in FAULTS if not looked.faults[kind]]
    fine = [kind for kind in fine if kind not in blind]
    for kind, own in looked.faults.items():
        rows += [[kind, str(len(own)), f"sample {min(own)}: {own[min(own)][:80]}"]] if own else []
    return [
        f"{path}: {looked.total} records",
        "sources: " + ", ".join(f"{name} {count}" for name, count in sources[:SHOWN]) + more,
        *(f"{kind}: " + ", ".join(f"{n} in {count}" for n, count in looked.counts[kind].items())
          for kind in ("turns", "pictures")),
        f"words per answer: {words}",
        *([f"pictures that were not looked at: {left} (--images DIR)"] if (left := looked.not_looked_at) else []),
        *([as_text(rows)] if len(rows) > 1 else []),
        *([f"none: {', '.join(fine)}"] if fine else []),
        *([f"not looked for: {', '.join(blind)} (--against, --model)"] if blind else []),
    ]  # fmt: skip


def _checkpoint_lines(found: dict[str, Any]) -> list[str]:
    rows = [["file", "bytes", "what it is"]]
    for name, about in found["files"].items():
        dtypes = ", ".join(f"{count} {dtype}" for dtype, count in about.get("numbers by dtype", {}).items())
        rows.append([name, str(about["bytes"]), " ".join(filter(None, [about["is"], f"({dtypes})" if dtypes else ""]))])
    adapted = ", ".join(f"{name} {count}" for name, count in found["adapted"].items()) or "nothing"
    others = [f"{name}: {value}" for name, value in found.items() if name not in ("files", "adapted")]
    return [as_text(rows), f"adapted: {adapted}", *others]
