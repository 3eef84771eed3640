"""Which samples `vlmsel score` reads together: batches of the pool, of parts of it, and of the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmsel.commands.inputs import pad_id
from vlmsel.data.batches import Collator, length_batches
from vlmsel.data.dataset import SampleDataset
from vlmsel.models.vlm import VLM
from vlmsel.scoring.batches import BatchPlan
from vlmsel.scoring.targets import Targets


class Plans:
    """Plans batches of data sets for one model."""

    def __init__(self, model: VLM, batch_tokens: int, batch_size: int | None, workers: int) -> None:
        self.device, self.workers = model.device, workers
        self.batch_tokens, self.batch_size = batch_tokens, batch_size
        self.collate = Collator(pad_id(model))

    def of(self, data: SampleDataset, positions: Sequence[int] | None = None) -> BatchPlan:
        """Put samples of like length into one batch; all usable ones when `positions` is left out."""
        positions = data.usable() if positions is None else positions
        return BatchPlan(data, self.collate, self._groups(positions, data.lengths()), self.device, self.workers)

    def targets(self, sets: Mapping[str, SampleDataset], each: bool) -> Targets:
        """Put samples of like length into one batch, whatever set they are of; with `each` all are targets."""
        joint = Targets.of({name: self.of(one) for name, one in sets.items()})
        lengths = [length for one in sets.values() for length in one.lengths()]
        joint = joint.rebatched(self._groups(sorted(joint.owners), lengths))
        return joint.apart([uid for one in sets.values() for uid in one.uids]) if each else joint

    def _groups(self, positions: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        groups = length_batches([lengths[i] for i in positions], self.batch_size, self.batch_tokens)
        return [[positions[i] for i in group] for group in groups]
