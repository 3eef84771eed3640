"""What rules know of a pool's samples beside their scores, by uid: source, length, loss, whether they can be used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vlmsel.data.formats import read_samples


@dataclass(frozen=True)
class Facts:
    """One entry per record of the pool: row = uid.

    Attributes:
        sources: where each comes from; "" for one that could not be read.
        usable: which may be chosen.
        tokens: supervised tokens where `supervised`, else the whole sample's; None where no table says.
        loss: the model's; None where no table says, NaN for a sample without.
    """

    sources: Shaped[np.ndarray, " n"]
    usable: Bool[np.ndarray, " n"]
    tokens: Int[np.ndarray, " n"] | None = None
    loss: Float[np.ndarray, " n"] | None = None
    supervised: bool = False

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def of_table(cls, table: Mapping[str, np.ndarray]) -> Facts:
        """Take them from the columns of a score table."""
        supervised = "supervised" in table
        tokens = np.nan_to_num(table["supervised" if supervised else "tokens"]).astype(np.int64)
        sources = table["source"].astype(str)
        return cls(sources, np.isfinite(table["loss"]), tokens, table["loss"], supervised)

    @classmethod
    def of_pool(cls, path: str | Path) -> Facts:
        """Take what the file of a pool says; what cannot be read is not usable."""
        pool = read_samples(path)
        codes = np.zeros(len(pool.records), dtype=np.int32)
        codes[pool.samples.uids] = pool.samples.codes + 1
        return cls(np.array(["", *pool.samples.names])[codes], codes > 0)

    def lengths(self) -> Int[np.ndarray, " n"]:
        """Return the samples' tokens.

        Raises:
            ValueError: they are not known.
        """
        if self.tokens is None:
            raise ValueError("how long samples are stands in the score table; give --scores too")
        return self.tokens

    def values(self, column: str) -> Float[np.ndarray, " n"]:
        """Return loss or length as numbers, NaN where a sample cannot be used.

        Raises:
            ValueError: they are not known.
        """
        if self.loss is None:
            raise ValueError(f"each sample's {column} stands in the score table; give --scores too")
        values = self.loss if column == "loss" else self.lengths()
        return np.where(self.usable, values, np.nan).astype(np.float64)
