"""Plain twins of the scorers, written straight from their formulas: one sample, one step, one inner product at a time.

`gradients` are g_j [n, rows, cols] and `v` is one target's mean gradient [rows, cols], both in float64; each function
returns h = P v [rows, cols].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True))


def scores(gradients: Tensor, h: Tensor) -> list[float]:
    """I(i) = -⟨P v, g_i⟩"""
    return [-dot(h, g) for g in gradients]


def mean_square(gradients: Tensor) -> float:
    total, count = 0.0, 0
    for g in gradients:
        for entry in g.flatten().tolist():
            total, count = total + entry**2, count + 1
    return total / count


def tracin(gradients: Tensor, v: Tensor) -> Tensor:
    return v


def tracin_block_scale(gradients: Tensor, v: Tensor) -> Tensor:
    return v / mean_square(gradients)


def adafactor(gradients: Tensor, v: Tensor, floor: float = 1e-6) -> Tensor:
    n, rows, cols = gradients.shape
    least = floor * mean_square(gradients)
    second = [[0.0] * cols for _ in range(rows)]
    for g in gradients.tolist():
        for i in range(rows):
            for j in range(cols):
                second[i][j] += g[i][j] ** 2 / n
    r = [max(sum(row) / cols, least) for row in second]
    c = [max(sum(row[j] for row in second) / rows, least) for j in range(cols)]
    h = torch.zeros_like(v)
    for i in range(rows):
        for j in range(cols):
            h[i, j] = v[i, j] / (r[i] * c[j] / mean_square(gradients)) ** 0.5
    return h


def datainf(gradients: Tensor, v: Tensor, damping: float) -> Tensor:
    lam = damping * mean_square(gradients)
    total = torch.zeros_like(v)
    for g in gradients:
        total = total + dot(v, g) * g / (lam + dot(g, g))
    return (v - total / len(gradients)) / lam


def fim(gradients: Tensor) -> Tensor:
    total = torch.zeros(gradients[0].numel(), gradients[0].numel(), dtype=torch.float64)
    for g in gradients:
        total = total + torch.outer(g.flatten(), g.flatten())
    return total / len(gradients)


def gfim(gradients: Tensor, side: str) -> Tensor:
    return sum((g.T @ g if side == "cols" else g @ g.T) for g in gradients) / len(gradients)


def direct(gradients: Tensor, v: Tensor, damping: float) -> Tensor:
    """(G + λI)⁻¹ v in parameter space"""
    a = fim(gradients) + damping * mean_square(gradients) * torch.eye(v.numel(), dtype=torch.float64)
    return torch.linalg.solve(a, v.flatten()).reshape(v.shape)


def lissa(gradients: Tensor, v: Tensor, damping: float, depth: int, scale: float | None = None) -> Tensor:
    lam = damping * mean_square(gradients)
    s = scale or 1 / (lam + sum(dot(g, g) for g in gradients) / len(gradients))
    r = s * v
    for _ in range(depth):
        product = lam * r
        for g in gradients:
            product = product + dot(g, r) * g / len(gradients)
        r = s * v + r - s * product
    return r


def lissa_published(gradients: Tensor, v: Tensor, damping: float, depth: int = 10) -> Tensor:
    """r ← v + r - mean_j(⟨g_j, r⟩ g_j - λ r): the published line, which adds λ r where it should subtract it"""
    lam = damping * mean_square(gradients)
    r = v
    for _ in range(depth):
        step = torch.zeros_like(v)
        for g in gradients:
            step = step + (dot(g, r) * g - lam * r) / len(gradients)
        r = v + r - step
    return r


def schulz_published(a: Tensor, steps: int, start: float = 5e-5) -> Tensor:
    eye = torch.eye(len(a), dtype=torch.float64)
    x = start * eye
    for _ in range(steps):
        x = x @ (2 * eye - a @ x)
    return x


def hyperinf(
    gradients: Tensor,
    v: Tensor,
    damping: float,
    side: str,
    extra: float = 0.0,
    invert: Callable[[Tensor], Tensor] = torch.linalg.inv,
) -> Tensor:
    """v (G + λI)⁻¹ with the GFIM of the cols side, (G + λI)⁻¹ v with that of the rows side"""
    g = gfim(gradients, side)
    a = g + (damping * mean_square(gradients) + extra) * torch.eye(len(g), dtype=torch.float64)
    return v @ invert(a) if side == "cols" else invert(a) @ v
