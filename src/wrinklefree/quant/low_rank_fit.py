"""The closed form of a low-rank correction: codes, scales and factors of one matrix from its inputs' second moments.

    min over What (ternary), U, V of  || W X - What Y - U V^T X ||^2 + eps || U V^T ||^2,    Y = Q(X)

by turns. The factors at fixed What are a reduced-rank regression, solved exactly. The codes at fixed factors are those
that `error_feedback` finds for W~ = (W - U V^T) X Y^T (Y Y^T)^-1 with the Hessian Y Y^T. That walk is no exact
minimiser, so the best pair seen is kept: the error never rises.

The turns begin with factors that hold W's own strongest directions on X, so that the codes are spared them; on
matrices with a falling spectrum this ends at half the error of factors that begin at zero.

Source: arXiv 2412.07902, section 3. Differs: ternary grid with fitted scales; the start; the best pair is kept; U are
the eigenvectors of M (X X^T + eps I) M^T, which makes them optimal for the damped problem too (eps is left out there).

Shape letters: O output features, I input features, r rank, N vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.quant.error_feedback import Ternarized, inverse_factor, ternarize_with_feedback
from wrinklefree.quant.ternary import TernarySpec, dequantize, ternarize


@dataclass(frozen=True)
class Moments:
    """Sums over N input vectors x and their quantised y: ``xx`` = X X^T, ``xy`` = X Y^T, ``yy`` = Y Y^T, ``[I, I]``."""

    xx: Tensor
    xy: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Return the moments of ``x`` and ``y``, both ``[N, I]``, in their dtype."""
        return cls(x.t() @ x, x.t() @ y, y.t() @ y)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy)


@dataclass(frozen=True)
class LowRankFit:
    """What was fitted, and its error as a share of |W X|^2.

    ``error_before``: of codes fitted alone, without factors. ``errors``: of these codes with their factors, then of the
    best pair so far after each alternation.
    """

    ternary: Ternarized
    u: Tensor
    v: Tensor
    error_before: float
    errors: tuple[float, ...]


@dataclass(frozen=True)
class _Pair:
    """Codes and the factors that are optimal for them; ``error`` is their damped squared error."""

    ternary: Ternarized
    u: Tensor
    v: Tensor
    error: float


def fit_low_rank(
    weight: Tensor,
    moments: Moments,
    rank: int,
    spec: TernarySpec,
    alternations: int = 4,
    damping: float = 0.05,
    epsilon: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> LowRankFit:
    """Fit codes, scales and factors ``u [O, r]``, ``v [r, I]`` to ``weight [O, I]`` on ``moments``.

    ``damping`` and ``epsilon``: the shares of the mean diagonal added to Y Y^T for the codes and to X X^T for the
    factors. ``dtype``: what the latents will be stored in, which decides their codes.
    """
    weight = weight.double()
    sums = Moments(moments.xx.double(), moments.xy.double(), moments.yy.double())
    rounding = inverse_factor(moments.yy.float(), damping)
    total = max(float((weight @ sums.xx * weight).sum()), 1e-30)
    penalty = epsilon * float(sums.xx.diagonal().mean())

    def codes_for(target: Tensor) -> Ternarized:
        wanted = regress(weight - target, sums.xy, sums.yy, damping)
        return ternarize_with_feedback(wanted.float(), rounding, spec)

    def pair(ternary: Ternarized) -> _Pair:
        product = ternary_product(ternary, spec, dtype)
        u, v = optimal_factors(weight, product, sums, rank, epsilon)
        target = u @ v
        return _Pair(
            ternary, u, v, squared_error(weight - target, product, sums) + penalty * float(target.square().sum())
        )

    alone = codes_for(torch.zeros_like(weight))
    before = squared_error(weight, ternary_product(alone, spec, dtype), sums)
    best = pair(alone)
    errors = [best.error]
    u, v = optimal_factors(weight, torch.zeros_like(weight), sums, rank, epsilon)
    for _ in range(alternations):
        found = pair(codes_for(u @ v))
        u, v = found.u, found.v
        best = min(best, found, key=lambda each: each.error)
        errors.append(best.error)
    return LowRankFit(best.ternary, best.u.float(), best.v.float(), before / total, tuple(e / total for e in errors))


def optimal_factors(weight: Tensor, product: Tensor, moments: Moments, rank: int, epsilon: float) -> tuple[Tensor, ...]:
    """Return ``u [O, r]`` and ``v [r, I]`` of the least damped error at fixed ``product`` What ``[O, I]``.

    With M = (W X - What Y) X^T (X X^T + eps I)^-1: U the first r eigenvectors of M (X X^T + eps I) M^T, V^T = U^T M.
    With X X^T + eps I = L L^T and A = M L these are A's left singular vectors, found from its smaller Gram matrix.
    Both are scaled alike, so that the two train at one learning rate: the function is U V^T whatever their split.
    """
    residual = weight @ moments.xx - product @ moments.xy.t()
    damped = damp(moments.xx, epsilon)
    lower = torch.linalg.cholesky(damped)
    a = torch.linalg.solve_triangular(lower, residual.t(), upper=False).t()
    if a.shape[0] <= a.shape[1]:
        u = torch.linalg.eigh(a @ a.t())[1][:, -rank:].flip(1)
    else:
        u = torch.linalg.qr(a @ torch.linalg.eigh(a.t() @ a)[1][:, -rank:].flip(1))[0]
    v = torch.linalg.solve_triangular(lower.t(), a.t() @ u, upper=True).t()
    balance = v.norm(dim=1).clamp(min=1e-12).sqrt()
    return u * balance, v / balance[:, None]


def regress(weight: Tensor, xy: Tensor, yy: Tensor, damping: float) -> Tensor:
    """Return ``weight X Y^T (Y Y^T + d I)^-1``, the matrix ``[O, I]`` that on Y comes nearest to ``weight`` on X.

    Differs: what damping takes from the answer it pulls towards ``weight``, not towards zero.
    """
    gap = xy - yy  # weight X Y^T = weight Y Y^T + weight gap
    return weight + torch.cholesky_solve((weight @ gap).t(), torch.linalg.cholesky(damp(yy, damping))).t()


def damp(gram: Tensor, share: float) -> Tensor:
    """Return ``gram`` with ``share`` of its mean diagonal added to the diagonal."""
    return gram + torch.diag((share * gram.diagonal().mean() + 1e-8).expand_as(gram.diagonal()))


def squared_error(weight: Tensor, product: Tensor, moments: Moments) -> float:
    """Return ||weight X - product Y||^2, never below zero."""
    cross = (weight @ moments.xy * product).sum()
    total = (weight @ moments.xx * weight).sum() - 2 * cross + (product @ moments.yy * product).sum()
    return max(float(total), 0.0)


def ternary_product(fitted: Ternarized, spec: TernarySpec, dtype: torch.dtype) -> Tensor:
    """Return codes * scale, float64 ``[O, I]``, as a layer with latents in ``dtype`` will have them."""
    codes, scale = ternarize(fitted.latent.to(dtype), spec, fitted.scale)
    return dequantize(codes, scale, spec).double()


def factor_bits(rows: int, columns: int, rank: int) -> float:
    """Return what factors in 16 bits add to each weight of a ``rows x columns`` layer, in bits."""
    return 16.0 * rank * (rows + columns) / (rows * columns)
