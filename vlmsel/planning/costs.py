"""The arithmetic of a plan: operations and bytes from a model's counts and what is read. No torch, no files.

Operations are multiplications and additions, two for each product: a matrix of N entries takes 2·N per token forward,
2·N backward for the gradient of its input, and 2·N for its own where that is formed; so 6·N per token where all learns
(Kaplan et al. 2020, arXiv 2001.08361, appendix), and 4·N where the backbone is frozen. Attention takes 4·t²·A per layer
for t tokens (QKᵀ and the sum over V, A = heads times their dimension; the causal half that is thrown away counts), and
twice that backward. The head is counted on supervised tokens, where alone logits are formed. Norms, activations and
softmax are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from vlmsel.models.counts import Counts

SCORE_PASS = 1.03  # time of the score pass over a plain forward and backward, llava-7b on an H100 (README.md)
CURVATURE_PASS = 1.4  # of the curvature pass: the tenth of samples that raised 1.03 to 1.17
SCHULZ_STEPS = 20  # log2 of the condition (about 2**15) + 5, see solvers/schulz.py
ADAM = 8  # bytes of AdamW's two moments for each number that learns, float32
TARGET_PASSES = 3  # means, the Gram matrix of sketches, the sums that virtual targets are


@dataclass(frozen=True)
class Amount:
    """What is read: samples, tokens (images' places included), Σ t², tokens that the loss is on, images."""

    samples: float
    tokens: float
    squares: float
    supervised: float
    images: float

    @classmethod
    def of(cls, tokens: Sequence[int], supervised: Sequence[int], images: Sequence[int]) -> Amount:
        """Add up samples.

        >>> Amount.of([3, 4], [1, 2], [0, 1])
        Amount(samples=2, tokens=7, squares=25, supervised=3, images=1)
        """
        return cls(len(tokens), sum(tokens), sum(t * t for t in tokens), sum(supervised), sum(images))

    def times(self, factor: float) -> Amount:
        """Return so many times as much.

        >>> Amount.of([4], [2], [0]).times(0.5).tokens
        2.0
        """
        return Amount(*(factor * getattr(self, field.name) for field in fields(self)))


def forward(model: Counts, read: Amount) -> float:
    """Return the operations of a forward pass over all of `read`."""
    seen = read.images * model.patches
    tower = 2 * model.products["tower"] * seen + 4 * model.tower_layers * model.tower_width * model.patches * seen
    between = 2 * model.products["projector"] * read.images * model.places
    matrices = 2 * (model.products["language"] + model.products["adapters"]) * read.tokens
    attention = 4 * model.layers * model.attention * read.squares
    return tower + between + matrices + attention + 2 * model.products["head"] * read.supervised


def backward(model: Counts, read: Amount) -> float:
    """Return the operations of the backward pass: back to the first layer whose gradient is formed, and those formed.

    The tower is frozen, and nothing goes back through it.
    """
    share = model.reached / model.layers
    inputs = 2 * share * (model.products["language"] + model.products["adapters"]) * read.tokens
    attention = 8 * model.reached * model.attention * read.squares
    head = 2 * (model.products["head"] + model.learning["head"]) * read.supervised
    own = 2 * (model.learning["language"] + model.learning["adapters"]) * read.tokens
    between = 3 * model.learning["projector"] * read.images * model.places  # of two maps, one gives its input's too
    return inputs + attention + head + own + between


def training(model: Counts, read: Amount, recomputed: bool = False) -> float:
    """Return the operations of training on all of `read` once; `recomputed` is gradient checkpointing, which goes
    forward through the language model twice."""
    again = 2 * model.products["language"] * read.tokens + 4 * model.layers * model.attention * read.squares
    return forward(model, read) + backward(model, read) + (again if recomputed else 0)


def inversion(sides: Sequence[int]) -> float:
    """Return the operations of Schulz's iteration on square matrices: two products of 2·d³ a step, in float32.

    >>> inversion([10]) == 20 * 2 * 2 * 10**3
    True
    """
    return SCHULZ_STEPS * 4 * float(sum(side**3 for side in sides))


def decoding(weights: float, questions: float, batch: int, answer: int, bandwidth: float) -> float:
    """Return the seconds of generating answers, whose every token reads all weights once per batch.

    Args:
        weights: bytes of the model.
        questions, batch, answer: how many, how many at once, tokens of an answer.
        bandwidth: of the memory, in bytes per second.
    """
    return -(-questions // batch) * answer * weights / bandwidth


# Bytes


def weight_bytes(model: Counts, dtype: float, masters: bool = True) -> float:
    """Return the bytes of all weights: `dtype` bytes each for what is frozen, 4 for what learns and for adapters and
    projector, which are float32 in any case, unless `masters` says that all are of the dtype."""
    wide = max(model.formed, model.entries["adapters"] + model.entries["projector"]) if masters else 0
    return dtype * (sum(model.entries.values()) - wide) + 4 * wide


def optimiser_bytes(model: Counts) -> float:
    """Return the bytes of AdamW's two moments of what learns, float32."""
    return ADAM * model.formed


def gradient_bytes(model: Counts) -> float:
    """Return the bytes of the gradients of what learns, float32."""
    return 4 * model.formed


def activation_bytes(model: Counts, tokens: float, width: float, recomputed: bool = False) -> float:
    """Return about what a backward pass over so many tokens keeps, the greatest batch's.

    Per layer and token: the input of both norms in float32 (8·d bytes); q, k, v and the attention's output (4·A
    numbers); gate, its activation and up (3·f numbers); what adapters read, in float32. With `recomputed` a layer's
    input alone, and one layer whole. The attention's t² weights are not kept (fused kernels).

    Args:
        tokens: of the batch.
        width: bytes of a number, 2 or 4.
    """
    layer = 8 * model.width + width * (4 * model.attention + 3 * model.inner) + 4 * model.read
    if recomputed:
        return tokens * (width * model.width * model.reached + layer)
    return tokens * layer * model.reached


def logit_bytes(model: Counts, supervised: float) -> float:
    """Return the bytes of logits in float32, their softmax and its gradient."""
    return 12 * supervised * model.vocabulary


def affinity_bytes(
    samples: int, targets: int, columns: int, scorers: int = 1, metric: bool = True, width: int = 4
) -> int:
    """Return the bytes of the tensors in `affinity.safetensors`, exactly: uids, per scorer C [N, r] of `width` bytes
    an entry, U [T, r], both norms and, of a scorer with its own norm, the products of columns [r, r]."""
    own = columns * columns if metric else 0
    rest = targets * columns + samples + targets + own
    return 8 * samples + scorers * (width * samples * columns + 4 * rest)


def table_bytes(samples: int, columns: int) -> int:
    """Return the most that `scores.parquet` takes: uid, tokens, supervised, loss, and every score, 8 bytes each."""
    return 8 * samples * (4 + columns)
