"""The affinity file: what every target sample says of every scored sample, in r columns, beside the score table.

    a_ti = U_t · C_i            affinity: highest = most helpful (the influence of the score table is -a)
    s_ti = a_ti / (|t| |i|)     unit affinity, |i| = √⟨P g_i, g_i⟩, |t| = √⟨P v_t, v_t⟩; 0 where one of them is 0

`affinity.safetensors` holds `uids` [n], ascending, of the samples that were scored, and for every scorer S

    C/S [n, r]       float32 or float16: ⟨P w, g_i⟩ for r virtual targets w, or a feature vector per sample
    U/S [T, r]       float32: how the virtual targets add up to each target sample, U_r Σ_r; or its feature vector
    norms/S [n], target_norms/S [T]       float32
    metric/S [r, r]  float32, may be missing: ⟨P w, w'⟩ of the virtual targets; 1 for feature vectors

Metadata (`vlmsel`, JSON): `targets`, {file, uid, weight, loss} of every row of U; `scorers`; per scorer `share`, the
part of the targets' trace that r columns keep, and `norms`, which norm was taken; `pool`, `pool_sha256`, `config`,
`inputs` (digests of model, pool and targets), `environment` as in the score table. The file is mapped: rows are read
when they are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vlmsel import runs
from vlmsel.data.formats import pool_digest

NAME = "affinity.safetensors"
_KEY = "vlmsel"
_PARTS = ("C", "U", "norms", "target_norms")


@dataclass(frozen=True)
class Columns:
    """What one scorer says of all samples and targets.

    Attributes:
        samples: C, [n, r], float32 or float16.
        targets: U, [T, r].
        norms: of the samples, [n].
        target_norms: [T].
        share: part of the targets' trace that the columns keep.
        norm: which norm was taken, in words.
        metric: of the columns, [r, r]; None for feature vectors, or where it is not known.
    """

    samples: np.ndarray
    targets: np.ndarray
    norms: np.ndarray
    target_norms: np.ndarray
    share: float = 1.0
    norm: str = "the scorer's own"
    metric: np.ndarray | None = None


def write_affinities(
    path: str | Path,
    uids: np.ndarray,
    targets: Sequence[Mapping[str, Any]],
    scorers: Mapping[str, Columns],
    about: Mapping[str, Any],
) -> None:
    """Write the file; what a killed process leaves is the old one or the new one.

    Args:
        path: the file.
        uids: of the rows of C, ascending. [n]
        targets: {"file", "uid", "weight", "loss"} of the rows of U, weight and loss may be None.
        scorers: by name, in order.
        about: `pool`, `pool_sha256` and `config` at least, JSON-able.

    Raises:
        ValueError: a number is not finite, as large ones in float16 are not.
    """
    assert (np.diff(uids) > 0).all(), "rows must be in the order of the pool"
    arrays = {"uids": np.ascontiguousarray(uids, dtype=np.int64)}
    for name, one in scorers.items():
        parts = dict(zip(_PARTS, (one.samples, one.targets, one.norms, one.target_norms), strict=True))
        if one.metric is not None:
            parts["metric"] = one.metric
        for part, values in parts.items():
            dtype = values.dtype if part == "C" and values.dtype == np.float16 else np.float32
            arrays[f"{part}/{name}"] = np.ascontiguousarray(values, dtype=dtype)
            if not np.isfinite(values).all():
                raise ValueError(f"{path}: {part} of {name} is not finite in {dtype}; keep it in float32")
    known = {
        **about,
        "environment": runs.environment(),
        "targets": [dict(target) for target in targets],
        "scorers": list(scorers),
        "share": {name: one.share for name, one in scorers.items()},
        "norms": {name: one.norm for name, one in scorers.items()},
    }
    with runs.atomic_path(path) as part_file:
        save_file(arrays, part_file, {_KEY: json.dumps(known)})


class Affinities:
    """An affinity file that is open for reading; holds neither C nor the affinities.

    Attributes:
        path: the file.
        about: its metadata.
        uids: of its rows, ascending. [n]
        targets: {"file", "uid", "weight", "loss"} of each target sample.
    """

    def __init__(self, path: str | Path, pool: str | Path | None = None) -> None:
        """Open a file; `pool` is the pool that it must belong to.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not an affinity file, or made from another pool.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such affinity file; `vlmsel score` writes it beside scores.parquet")
        try:
            self._file = safe_open(str(path), "np")
            self.about: dict[str, Any] = json.loads((self._file.metadata() or {})[_KEY])
            self.targets: list[dict[str, Any]] = self.about["targets"]
            self.uids: np.ndarray = self._file.get_tensor("uids")
            self._check_shapes()
        except (SafetensorError, KeyError, AssertionError, json.JSONDecodeError) as problem:
            raise ValueError(f"{path}: not an affinity file, or damaged ({problem!r}); score the pool again") from None
        if pool is not None and self.about["pool_sha256"] != pool_digest(pool):
            raise ValueError(
                f"{path}: these affinities belong to another pool ({self.about['pool']}) than {pool}; score this pool "
                "first"
            )

    def _check_shapes(self) -> None:
        for name in self.about["scorers"]:
            c, u, n, t = (tuple(self._file.get_slice(f"{part}/{name}").get_shape()) for part in _PARTS)
            assert (n, t, c[1]) == (c[:1], u[:1], u[1]) and (c[0], u[0]) == (len(self), len(self.targets)), name

    def __len__(self) -> int:
        return len(self.uids)

    def require(self, scorer: str, about: Mapping[str, Any]) -> None:
        """Check that a scorer is here, tells samples apart, and is of the run whose score table says `about`.

        Raises:
            ValueError: it is not.
        """
        if scorer not in self.about["scorers"]:
            raise ValueError(f"{self.path}: no affinities by {scorer!r}; it has {', '.join(self.about['scorers'])}")
        if changed := _differs(self.about, about):
            raise ValueError(f"{self.path}: of another run than the score table beside it ({changed}); score again")
        if not self._file.get_tensor(f"norms/{scorer}").any():
            raise ValueError(f"{self.path}: no sample has a gradient by {scorer}, so that none is better than another")

    def measure(self, scorer: str) -> dict[str, Any]:
        """Return which norm a scorer's unit affinities are by, how many columns stand for the targets, and which share
        of the targets' trace they keep."""
        columns = self._file.get_slice(f"C/{scorer}").get_shape()[1]
        return {"norms": self.about["norms"][scorer], "columns": columns, "share": self.about["share"][scorer]}

    def write_part(self, path: str | Path, rows: Sequence[int]) -> None:
        """Write the same for some of the target samples, by their rows."""
        scorers = {}
        for name in self.about["scorers"]:
            c, u, norms, target_norms = (self._file.get_tensor(f"{part}/{name}") for part in _PARTS)
            inner = self._file.get_tensor(f"metric/{name}") if f"metric/{name}" in self._file.keys() else None  # noqa: SIM118
            share, norm = self.about["share"][name], self.about["norms"][name]
            scorers[name] = Columns(c, u[rows], norms, target_norms[rows], share, norm, inner)
        write_affinities(path, self.uids, [self.targets[row] for row in rows], scorers, self.about)

    def norms(self, scorer: str, records: int) -> np.ndarray:
        """Return the norms of so many records by uid, NaN for one that was not scored. [records]"""
        whole = np.full(records, np.nan)
        whole[self.uids] = self._file.get_tensor(f"norms/{scorer}")
        return whole

    def directions(self, scorer: str) -> np.ndarray:
        """Return U_t / |t|, of which the products with `unit` rows are unit affinities. [T, r]"""
        return _over(self._file.get_tensor(f"U/{scorer}"), self._file.get_tensor(f"target_norms/{scorer}"))

    def combination(self, scorer: str) -> np.ndarray:
        """Return U. [T, r]"""
        return self._file.get_tensor(f"U/{scorer}")

    def unit(self, scorer: str, rows: slice) -> np.ndarray:
        """Return C_i / |i| of some rows. [rows, r]"""
        norms = self._file.get_slice(f"norms/{scorer}")[rows]
        return _over(self._file.get_slice(f"C/{scorer}")[rows], norms)

    def block(self, scorer: str, rows: slice, unit: bool = True) -> np.ndarray:
        """Return the unit affinities of some rows to every target, or the affinities themselves. [T, rows]"""
        if unit:
            return self.directions(scorer) @ self.unit(scorer, rows).T
        return self.combination(scorer) @ self._file.get_slice(f"C/{scorer}")[rows].astype(np.float32).T

    def mean_influence(self, scorer: str, targets: Sequence[int]) -> np.ndarray:
        """Return each row's influence on the mean of some targets, by their weights; lowest = most helpful. [n]"""
        weights = np.array([1.0 if (w := self.targets[row]["weight"]) is None else w for row in targets], np.float32)
        mean = (weights / weights.sum()) @ self.combination(scorer)[list(targets)]
        return -(self._file.get_tensor(f"C/{scorer}").astype(np.float32) @ mean)

    def whitening(self, scorer: str) -> np.ndarray:
        """Return R [r, d], by which unit rows become coordinates of the gradients' projections on the targets' span:
        ⟨c_i R, c_j R⟩ / (|i| |j|) is the cosine of the projections of g_i and g_j in the scorer's metric.

        With w the virtual targets and M = ⟨P w, w'⟩, the coordinates of g_i with c_i = ⟨P w, g_i⟩ are M^-½ c_i: exact
        for samples in the span. Where the file has no M it is taken for m · 1, with m by which the targets' norms come
        out on average: exact for feature vectors and orthonormal w. Products with targets are exact whatever M is.

        Raises:
            ValueError: there is no M, and the norms are those of plain gradients: lengths would not be comparable.
        """
        columns = self.combination(scorer)
        if f"metric/{scorer}" not in self._file.keys():  # noqa: SIM118
            if self.about["norms"][scorer].startswith("plain"):
                raise ValueError(f"{scorer} has norms of plain gradients only; herding needs its own: take round_robin")
            squares = float(np.square(self._file.get_tensor(f"target_norms/{scorer}"), dtype=np.float64).sum())
            m = self.about["share"][scorer] * squares / float(np.square(columns, dtype=np.float64).sum())
            return np.eye(columns.shape[1], dtype=np.float32) / np.float32(np.sqrt(m))
        values, vectors = np.linalg.eigh(self._file.get_tensor(f"metric/{scorer}").astype(np.float64))
        kept = values > 1e-6 * values[-1]
        return (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)


def put_together(about: Mapping[str, Any]) -> str:
    """Return how the scores of blocks were put together in a run's table (see aggregate.py), by its metadata."""
    return (yaml.safe_load(about["config"]) or {}).get("aggregate", "sum")


def beside(table: Path, pool: str | Path, scorer: str, about: Mapping[str, Any], rule: str | None = None) -> Affinities:
    """Open the affinities that lie beside a score table, of which `about` are the metadata, for a rule that was named.

    Raises:
        ValueError: there are none, or they are of another pool, run or scorers; or no rule was named, and the table's
            scores are no sums over blocks, as affinities always are.
    """
    if rule is None and (how := put_together(about)) != "sum":
        raise ValueError(
            f"{table}: its scores are put together by {how}, which affinities to single target samples are not; go by "
            "the table with --rule top, or by affinities that are sums over blocks with --rule round_robin"
        )
    path = table.with_name(NAME)
    if not path.is_file():
        raise ValueError(
            f"{table}: no {NAME} beside it, by which target samples choose; score the pool with `vlmsel score "
            "--each_target true`, or take the lowest mean influence with --rule top"
        )
    found = Affinities(path, pool)
    found.require(scorer, about)
    return found


def _over(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Divide rows by their norms; 0 where the norm is. [n, r], [n] -> float32 [n, r]"""
    whole = np.where(norms > 0, norms, np.inf).astype(np.float32)
    return rows.astype(np.float32, copy=False) / whole[:, None]


def _differs(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Name what tells two runs apart, among all that a result depends on; "" when nothing does."""
    if one["pool_sha256"] != other["pool_sha256"]:
        return "the pool"
    for name, digest in one.get("inputs", {}).items():  # runs of earlier versions do not say
        if other.get("inputs", {}).get(name, digest) != digest:
            return name
    mine, its = (yaml.safe_load(about["config"]) or {} for about in (one, other))
    names = [name for name in {**mine, **its} if name not in runs.FREE and mine.get(name) != its.get(name)]
    return f"{names[0]}: {mine.get(names[0])} here, {its.get(names[0])} there" if names else ""
