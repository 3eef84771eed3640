"""`vlmsel score --checkpoints`: TracIn summed over checkpoints of one training run, weighted by learning rates.

The checkpoints' trained parts are put into the model that was scored, one after the other, so that backbones are loaded
once; what makes a checkpoint another model is refused before anything is scored. Scores at checkpoint number c lie in
`out/checkpoints/<c>`, counted from 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vlmsel import processes, runs
from vlmsel.checks import check_positive
from vlmsel.commands.inputs import Data
from vlmsel.models import checkpoint
from vlmsel.models.config import VLMConfig
from vlmsel.models.language import load_tokenizer
from vlmsel.models.vlm import VLM
from vlmsel.scorers import Scorer, TracIn
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.checkpoints import SUFFIX, add_checkpoints, first_order, score_checkpoint
from vlmsel.scoring.curvature import Pass, Streams
from vlmsel.scoring.pool_pass import Scored, Share
from vlmsel.scoring.score_pass import Bad

FREE = ("vision", "vision_weights", "language", "projector_seed", "projector_trained")  # fingerprints say more


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints in the order they were given: what the user calls them, their folders, and learning rates."""

    names: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    rates: tuple[float, ...] = ()
    scorers: tuple[TracIn, ...] = ()

    def inputs(self) -> dict[str, str]:
        """Name the checkpoints by their content, for `inputs.json`."""
        pairs = zip(self.names, self.folders, strict=True)
        return {f"checkpoint {number} ({name})": _digest(each) for number, (name, each) in enumerate(pairs, 1)}


def open_checkpoints(
    model: VLM,
    names: Sequence[str] | None,
    rates: Sequence[float] | None,
    scorers: Sequence[Scorer],
    allow_untrained: bool = False,
) -> Checkpoints:
    """Check checkpoints against the model whose place they will take; none are fine too.

    Raises:
        FileNotFoundError: a folder holds no model.
        ValueError: numbers or rates are wrong, no scorer is of first order, or a checkpoint is of another make.
    """
    if not names and not rates:
        return Checkpoints()
    names, rates = tuple(names or ()), tuple(rates or ())
    if len(names) != len(rates):
        raise ValueError(
            f"{len(names)} checkpoints and {len(rates)} learning rates; give as many --checkpoint_lrs as --checkpoints"
        )
    for rate in rates:
        check_positive(checkpoint_lrs=rate)
    chosen = first_order(scorers)
    if not chosen:
        raise ValueError("--checkpoints sums TracIn over checkpoints; add TracIn to --scorers, or leave them out")
    folders = tuple(_folder(name) for name in names)
    for name, folder in zip(names, folders, strict=True):
        _check_make(model, name, folder, allow_untrained)
    return Checkpoints(names, folders, rates, tuple(chosen))


def _folder(name: str) -> Path:
    for folder in (Path(name), Path(name) / "model"):
        if (folder / checkpoint.CONFIG).is_file():
            return folder
    raise FileNotFoundError(f"checkpoint {name}: no model; give a folder that align or tune wrote")


def _check_make(model: VLM, name: str, folder: Path, allow_untrained: bool) -> None:
    """Refuse a checkpoint whose trained parts do not belong into the model."""
    config, fingerprints = checkpoint.read_config(folder)
    if not (allow_untrained or config.ready):
        raise ValueError(f"checkpoint {name}: its projector was never trained; leave it out or --allow_untrained true")
    own = _make(model.vlm_config)
    differ = [key for key, value in _make(config).items() if value != own[key]]
    parts = ("vision",) if config.language_trained else ("vision", "language")
    differ += [part for part in parts if _known_apart(fingerprints.get(part, ""), model.fingerprints[part])]
    if differ:
        raise ValueError(f"checkpoint {name} is not of the same make as the model: {differ[0]} differs; leave it out")
    stored = folder / checkpoint.TOKENIZER
    if stored.is_dir() and not _same_tokenizer(load_tokenizer(str(stored)), model.tokenizer):
        raise ValueError(f"checkpoint {name} has another tokenizer than the model; leave it out")


def _make(config: VLMConfig) -> dict[str, Any]:
    return {key: value for key, value in config.as_json().items() if key not in FREE}


def _known_apart(one: str, other: str) -> bool:
    """Tell whether two fingerprints differ; an empty one makes no statement."""
    return bool(one and other and one != other)


def _same_tokenizer(one: Any, other: Any) -> bool:
    return one.get_vocab() == other.get_vocab() and one.special_tokens_map == other.special_tokens_map


def _digest(folder: Path) -> str:
    """Hash a checkpoint's weights and configuration; versions of libraries aside."""
    config, fingerprints = checkpoint.read_config(folder)
    total = hashlib.sha256(repr((config, sorted(fingerprints.items()))).encode())
    for path in sorted(folder.rglob("*.safetensors")):
        total.update(f"{path.relative_to(folder)} {runs.file_hash(path)}".encode())
    return total.hexdigest()


def score_checkpoints(
    checkpoints: Checkpoints,
    job: Pass,
    plan: BatchPlan,
    streams: Streams,
    scored: Scored | None,
    pool: Data,
    folder: Path,
    share: Share,
) -> Scored | None:
    """Score the pool at every checkpoint and add the columns of their sum to `scored`; leaves the last in the model.

    Returns:
        `scored` with more columns, or None as long as other jobs' chunks are not there.
    """
    if not checkpoints.names:
        return scored
    found, reasons = [], {}
    for number, (name, place) in enumerate(zip(checkpoints.names, checkpoints.folders, strict=True), 1):
        if processes.is_main():
            print(f"checkpoint {number} of {len(checkpoints.names)}: {name}")
        checkpoint.load_trained(job.model, place)  # type: ignore[arg-type]
        at = replace(job, bad=Bad())
        out = folder / "checkpoints" / str(number)
        try:
            found.append(score_checkpoint(at, plan, streams, checkpoints.scorers, out, share))
        except ValueError as problem:
            raise ValueError(f"checkpoint {name}: {problem}") from None
        reasons.update({uid: f"checkpoint {name}: {reason}" for uid, reason in at.bad.reasons.items()})
    done = [one for one in found if one is not None]
    if scored is None or len(done) < len(found):
        return None
    summed = _without(add_checkpoints(scored, done, checkpoints.rates), job.bad)
    if processes.is_main():
        _report({uid: why for uid, why in reasons.items() if uid not in job.bad.reasons}, pool, folder)
    return summed


def _without(scored: Scored, bad: Bad) -> Scored:
    """Take the sums of samples that were left out: such a sample has no score at all."""
    out = torch.tensor([uid in bad.reasons for uid in scored.uids.tolist()], dtype=torch.bool)
    return replace(scored, scores=scored.scores.masked_fill(out, float("nan")))


def _report(reasons: Mapping[int, str], pool: Data, folder: Path) -> None:
    """Write which samples have scores but no sum over checkpoints, and why, and print one line."""
    path = folder / "checkpoints" / "not_finite.json"
    if not reasons:
        path.unlink(missing_ok=True)
        return
    runs.write_json(path, [{"uid": uid, "reason": reason} for uid, reason in sorted(reasons.items())])
    uid = min(reasons)
    print(
        f"{pool.path}: {len(reasons)} of {pool.total} samples have no sum over the checkpoints ({SUFFIX}), listed in "
        f"{path} (the first: sample {uid}: {reasons[uid]})"
    )
