"""Groups of options that several commands have, each group one small record; on the command line and in YAML every
field is an option of its own (`--images`, not `--reading.images`)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from vlmsel.checks import check_at_least_one
from vlmsel.data.dataset import Reading
from vlmsel.data.encoding import LossOn
from vlmsel.scoring.batches import Batching
from vlmsel.scoring.first_batch import Check
from vlmsel.scoring.memory_plan import Prefer
from vlmsel.scoring.passes import FitPart
from vlmsel.scoring.store_pass import StoreSpec


@dataclass(frozen=True)
class ReadingOptions:
    """How samples are read.

    Attributes:
        images: the folder that image paths are relative to; not needed when no sample has an image.
        max_length: longest sequence in tokens, patches included; what is longer is cut.
        loss_on: what a sample's loss is taken on: its answers, or all of its text.
        template: the conversation template for a Hugging Face language model; text when left out.
        exif: turn pictures as their EXIF orientation says, or leave them; as the model was trained when left out, and
            as they are for one that was not. A model that is saved keeps it.
        allow_missing: go on where pictures of more than 5 % of a file's samples are missing, without these samples.
    """

    flat: ClassVar[bool] = True
    images: str | None = None
    max_length: int = 2048
    loss_on: LossOn = "answers"
    template: str | None = None
    exif: bool | None = None
    allow_missing: bool = False

    def reading(self) -> Reading:
        """Return how a model reads samples."""
        images = None if self.images is None else Path(self.images)
        return Reading(images, self.max_length, self.loss_on, allow_missing=self.allow_missing)


@dataclass(frozen=True)
class FeatureOptions:
    """What is read beside the pool.

    Attributes:
        target_images: the image folder of the targets when it is another one.
        features: a folder to keep the tower's features in, so that later passes and runs need neither pictures nor
            tower.
    """

    flat: ClassVar[bool] = True
    target_images: str | None = None
    features: str | None = None

    def target_reading(self, pool: Reading) -> Reading:
        """Return how targets are read, where the pool is read so."""
        return pool if self.target_images is None else replace(pool, images=Path(self.target_images))


@dataclass(frozen=True)
class TargetOptions:
    """What targets are.

    Attributes:
        each_target: every sample of the target files is a target of its own, too: `affinity.safetensors` says how close
            each sample of the pool is to each of them, which `vlmsel select` chooses by.
        columns: the most columns that stand for target samples; exact where there are no more samples than columns.
        columns_dtype: float32, or float16 for half the size of `affinity.safetensors`.
    """

    flat: ClassVar[bool] = True
    each_target: bool = True
    columns: int = 128
    columns_dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        check_at_least_one(columns=self.columns)


@dataclass(frozen=True)
class BatchOptions:
    """How samples are put into batches.

    Attributes:
        batch_tokens: most tokens per forward and backward pass, patches and padding included; halved where memory runs
            out.
        batch_size: most samples per pass; as many as the tokens allow when left out.
        workers: processes that read samples.
        check: first-batch compares the gradients of a few samples with autograd's own before the passes begin; none
            goes without.
    """

    flat: ClassVar[bool] = True
    batch_tokens: int = 8192
    batch_size: int | None = None
    workers: int = 0
    check: Check = "first-batch"

    def __post_init__(self) -> None:
        check_at_least_one(batch_tokens=self.batch_tokens, batch_size=self.batch_size)

    def batching(self) -> Batching:
        """Return how batches are made."""
        return Batching(self.batch_tokens, self.batch_size, self.workers)


@dataclass(frozen=True)
class FitOptions:
    """Which samples curvature is fitted on.

    Attributes:
        fit_samples: how many samples, drawn with `seed`, curvature is fitted on; all when left out.
        scale_samples: how many fit samples the damping of DataInf is measured on before the pass; all of them when
            null.
        seed: draws the fit samples.
    """

    flat: ClassVar[bool] = True
    fit_samples: int | None = None
    scale_samples: int | None = 512
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least_one(fit_samples=self.fit_samples, scale_samples=self.scale_samples)

    def part(self) -> FitPart:
        """Return which samples P is made from."""
        return FitPart(self.fit_samples, self.scale_samples, self.seed)


@dataclass(frozen=True)
class PlaceOptions:
    """Where a command runs.

    Attributes:
        device: auto, cpu, cuda or cuda:<number>.
        curvature_on: where curvature is gathered: device, host (memory), disk, or auto, the first that has room.
    """

    flat: ClassVar[bool] = True
    device: str = "auto"
    curvature_on: Prefer = "auto"


@dataclass(frozen=True)
class CheckpointOptions:
    """The sum over checkpoints.

    Attributes:
        checkpoints: folders of models of the same make: TracIn in any form is also summed over them, in columns
            `<name>.CP/<target>`. `model` takes part only if it is among them.
        checkpoint_lrs: the learning rate at each checkpoint, by which its scores are multiplied.
        allow_untrained: score with a projector that was never trained (selection before alignment).
    """

    flat: ClassVar[bool] = True
    checkpoints: tuple[str, ...] | None = None
    checkpoint_lrs: tuple[float, ...] | None = None
    allow_untrained: bool = False


@dataclass(frozen=True)
class StoreOptions:
    """A gradient store beside the scores.

    Attributes:
        store: a folder to keep every sample's gradients in, for other scorers later (`vlmsel rescore`); a pass of its
            own. Llama-2-7B with LoRA r=64 on q and v has 33.5 million entries, 134 MB per sample in float32: project,
            or choose fewer blocks.
        store_dtype: float32, bfloat16 or float16, of what is stored.
        store_projection: random projection of each block to at most so many rows and columns, such as 16.
    """

    flat: ClassVar[bool] = True
    store: str | None = None
    store_dtype: str = "float32"
    store_projection: int | None = None

    def __post_init__(self) -> None:
        if self.store is None and (self.store_dtype, self.store_projection) != ("float32", None):
            name = "store_dtype" if self.store_dtype != "float32" else "store_projection"
            raise ValueError(f"--{name}: no meaning for a pass over the pool (without --store DIR); leave it out")

    def spec(self) -> StoreSpec:
        """Return where and how the store is written."""
        assert self.store is not None
        return StoreSpec(self.store, self.store_dtype, self.store_projection)


def refuse_idle(where: str, *groups: Any) -> None:
    """Refuse options that were set and change nothing.

    Raises:
        ValueError: one of the groups' options is not as it is when left out.
    """
    for group in groups:
        for one in fields(group):
            if getattr(group, one.name) != one.default:
                raise ValueError(f"--{one.name}: no meaning for {where}; leave it out")
