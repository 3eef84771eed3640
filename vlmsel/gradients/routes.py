"""Which exact route an operation on per-sample gradients takes: from the tokens, or from the formed gradient ("dense").

Counts are multiply-adds per sample of t tokens on a block [rows, cols]; what both routes share is left out.
"""

from __future__ import annotations

from typing import Literal

Route = Literal["tokens", "dense"]


def cheaper(tokens: int, dense: int) -> Route:
    """Return the route with fewer multiply-adds; a tie goes to the tokens, which need no dense gradient."""
    return "tokens" if tokens <= dense else "dense"


def inner_route(t: int, rows: int, cols: int, k: int) -> Route:
    """Choose the route of ⟨h_k, g_i⟩ for k targets and a sample of t tokens.

    >>> inner_route(t=4, rows=64, cols=64, k=1), inner_route(t=400, rows=64, cols=64, k=1)
    ('tokens', 'dense')
    """
    return cheaper(t * k * (rows * cols + min(rows, cols)), (t + k) * rows * cols)


def norm_route(t: int, rows: int, cols: int) -> Route:
    """Choose the route of ‖g_i‖² for a sample of t tokens."""
    return cheaper(t * t * (rows + cols), (t + 1) * rows * cols)


def gram_route(t: int, across: int, kept: int) -> Route:
    """Choose the route of g_iᵀ g_i (kept = cols, across = rows) or g_i g_iᵀ (the other way round)."""
    return cheaper(t * t * (across + kept) + t * kept * kept, t * across * kept + across * kept * kept)


def sum_route(t: int, rows: int, cols: int, k: int) -> Route:
    """Choose the route of Σ_i w_ki g_i for k rows of weights, per sample of t tokens."""
    return cheaper(k * t * (rows * cols + min(rows, cols)), (t + k) * rows * cols)
