"""Systems M x = v of HyperINF's convergence study (arXiv 2410.05090, Figures 1 and 12-16), and ways to solve them.

    M = 1/N Σ s sᵀ + 0.01 I,   s, v ~ one of five distributions (the second number of N(·, ·) is the standard deviation)

An iterative way gives its iterates, a direct one a single x. All work in the dtype of M.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from scipy.sparse import linalg as sparse
from torch import Tensor

from vlmsel.solvers import cholesky, schulz

DAMPING = 0.01
PUBLISHED_START = 5e-5
REFINED = "Schulz, our start, refined"
NORMAL = {"N(0,1)": (0.0, 1.0), "N(0.5,1)": (0.5, 1.0), "N(0,5)": (0.0, 5.0), "N(0.5,5)": (0.5, 5.0)}
DISTRIBUTIONS = (*NORMAL, "U(0,1)")


class System:
    """M, v, the vectors s that M is made of [N, d], and x = M⁻¹v by Cholesky in float64."""

    def __init__(self, d: int, samples: int, distribution: str, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.s, self.v = (draw(n, d, distribution, generator) for n in (samples, 1))
        self.v = self.v[0]
        self.m = self.s.T @ self.s / samples
        self.m.diagonal().add_(DAMPING)
        self.x = cholesky.solve(self.m, self.v[:, None])[:, 0]

    def to(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return M and v rounded."""
        return self.m.to(dtype), self.v.to(dtype)

    def rounded(self, dtype: torch.dtype) -> Tensor:
        """Return M⁻¹v of M and v as `dtype` has them, in float64."""
        m, v = self.to(dtype)
        return cholesky.solve(m.double(), v.double()[:, None])[:, 0]

    def error(self, x: Tensor, of: Tensor | None = None) -> float:
        """Return ‖x - y‖ / ‖y‖ with y = M⁻¹v, or as given."""
        y = self.x if of is None else of
        return float((x.double() - y).norm() / y.norm())


def draw(n: int, d: int, distribution: str, generator: torch.Generator) -> Tensor:
    """Draw vectors in float64. [n, d]"""
    if distribution in NORMAL:
        mean, deviation = NORMAL[distribution]
        return mean + deviation * torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.rand(n, d, generator=generator, dtype=torch.float64)


# Iterative ways: x_1, x_2, …


def schulz_from(m: Tensor, v: Tensor, start: float) -> Iterator[Tensor]:
    """X ← X - X (M X - I) from start·I; what is given is X v."""
    x = start * torch.eye(len(m), dtype=m.dtype)
    while True:
        error = m @ x
        error.diagonal().sub_(1)
        x -= x @ error
        yield x @ v


def schulz_ours(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """From 2 / (lo + hi), as `vlmsel.solvers.schulz` starts."""
    return schulz_from(m, v, 2 / (DAMPING + schulz.spectrum_bound(m)))


def schulz_refined(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """From our start until it has converged or stalls, then x ← x + X (v - M x) with the residual in float64, as
    HyperINF solves in float32."""
    found = schulz.inverse(m, DAMPING)
    yield from itertools.islice(schulz_ours(m, v), len(found.residuals) - 1)
    x = (found.matrix @ v).double()
    while True:
        x = x + (found.matrix @ (v.double() - m.double() @ x).to(m.dtype)).double()
        yield x


def schulz_published(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """From 5e-5·I, as the published code starts."""
    return schulz_from(m, v, PUBLISHED_START)


def neumann(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """LiSSA's recursion as published, r ← v + (I - M) r, without a scale."""
    r = v
    while True:
        r = v + r - m @ r
        yield r


def neumann_scaled(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """r ← s v + (I - s M) r with s = 1 / a bound of the spectrum, as our LiSSA."""
    s = 1 / schulz.spectrum_bound(m)
    r = s * v
    while True:
        r = s * v + r - s * (m @ r)
        yield r


def sor(m: Tensor, v: Tensor, omega: float) -> Iterator[Tensor]:
    """Successive over-relaxation: (D/ω + L) x' = v + ((1/ω - 1) D - U) x."""
    diagonal, x = torch.diag(m.diagonal()), torch.zeros_like(v)
    lower, rest = diagonal / omega + m.tril(-1), (1 / omega - 1) * diagonal - m.triu(1)
    while True:
        x = torch.linalg.solve_triangular(lower, (v + rest @ x)[:, None], upper=False)[:, 0]
        yield x


def conjugate_gradient(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """SciPy's, run anew for each number of iterations."""
    for steps in range(1, 10**6):
        yield torch.from_numpy(sparse.cg(m.numpy(), v.numpy(), rtol=torch.finfo(m.dtype).eps, maxiter=steps)[0])


def gmres(m: Tensor, v: Tensor) -> Iterator[Tensor]:
    """SciPy's, without restarts, run anew for each number of iterations."""
    for steps in range(1, 10**6):
        size = min(steps, len(m))
        yield torch.from_numpy(sparse.gmres(m.numpy(), v.numpy(), rtol=1e-15, restart=size, maxiter=1)[0])


ITERATIVE: dict[str, Callable[[Tensor, Tensor], Iterator[Tensor]]] = {
    "Schulz, our start": schulz_ours,
    REFINED: schulz_refined,
    "Schulz, published start": schulz_published,
    "conjugate gradient": conjugate_gradient,
    "GMRES": gmres,
    "SOR 0.5": lambda m, v: sor(m, v, 0.5),
    "SOR 1.5": lambda m, v: sor(m, v, 1.5),
    "Neumann / LiSSA, published": neumann,
    "Neumann / LiSSA, scaled": neumann_scaled,
}


# Direct ways


def gaussian_elimination(m: Tensor, v: Tensor) -> Tensor:
    """By LU with partial pivoting, LAPACK's gesv."""
    return torch.linalg.solve(m, v)


def inverse(m: Tensor, v: Tensor) -> Tensor:
    """By torch.linalg.inv, then a product."""
    return torch.linalg.inv(m) @ v


def by_cholesky(m: Tensor, v: Tensor) -> Tensor:
    """By ours: L Lᵀ and two triangular solves."""
    return cholesky.solve(m, v[:, None])[:, 0]


DIRECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Gaussian elimination": gaussian_elimination,
    "torch.linalg.inv": inverse,
    "Cholesky": by_cholesky,
}


def datainf(system: System) -> Tensor:
    """DataInf's closed form, the mean of (s sᵀ + 0.01 I)⁻¹ v."""
    s, v = system.s, system.v
    weights = (s @ v) / (DAMPING + s.square().sum(1))
    return (v - weights @ s / len(s)) / DAMPING


def taken(name: str, m: Tensor, v: Tensor, steps: int) -> Tensor:
    """Return x of one way, an iterative one after so many steps and no more work than these take."""
    if name in DIRECT:
        return DIRECT[name](m, v)
    if name == "conjugate gradient":
        return torch.from_numpy(sparse.cg(m.numpy(), v.numpy(), rtol=torch.finfo(m.dtype).eps, maxiter=steps)[0])
    if name == "GMRES":
        size = min(steps, len(m))
        return torch.from_numpy(sparse.gmres(m.numpy(), v.numpy(), rtol=1e-15, restart=size, maxiter=1)[0])
    iterates = ITERATIVE[name](m, v)
    for _ in range(steps - 1):
        next(iterates)
    return next(iterates)
