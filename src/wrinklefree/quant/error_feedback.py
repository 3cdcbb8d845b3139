"""Second-order ternarisation of one weight matrix: round column by column, feed each error forward.

The error of a column is pushed onto the columns not yet rounded, weighted by the inverse of the inputs' Gram matrix, so
that they make up for it where the inputs are correlated. The grid is ternary, and its scales are fitted when the walk
reaches them, so that they see the errors fed back so far.

Source: OBQ arXiv 2208.11580 and GPTQ arXiv 2210.17323 (the walk and its Cholesky form); the grid and the fit are ours.

Shape letters: O output features (rows), I input features (columns).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.quant.ternary import TernarySpec, grouped, storable

# Columns whose errors are collected before the rest of the matrix is updated in one product.
BLOCK_COLUMNS = 64
# Latents are kept within this many scales of zero: codes do not change, and each stays in reach of training.
LATENT_LIMIT = 1.4


@dataclass(frozen=True)
class Ternarized:
    """A ternarised matrix: ``latent`` ``[O, I]`` rounds to the codes under ``scale`` (`TernarySpec.scale_shape`)."""

    latent: Tensor
    scale: Tensor


def fit_scale(weight: Tensor, importance: Tensor, iterations: int = 10) -> Tensor:
    """Return one scale for each row of ``weight [O, I]``, least squares weighted by ``importance [I]``.

    Alternates codes t = clip(round(w / a), -1, 1) and scale a = sum(h w t) / sum(h t^2), from the weighted mean |w|.
    """
    scale = (weight.abs() * importance).sum(1) / importance.sum()
    for _ in range(iterations):
        codes = (weight / scale.clamp(min=1e-8)[:, None]).round_().clamp_(-1, 1)
        weighted = codes * importance
        scale = (weighted * weight).sum(1) / (weighted * codes).sum(1).clamp(min=1e-12)
    return scale


def fit_scales(weight: Tensor, spec: TernarySpec) -> Tensor:
    """Return the least-squares scales of ``weight [O, I]`` rounded as it is (`TernarySpec.scale_shape`, storable)."""
    if spec.granularity == "group":
        groups = grouped(weight, spec)
        flat = groups.flatten(0, 1)
        return storable(fit_scale(flat, torch.ones_like(flat[0])).unflatten(0, groups.shape[:2]), spec)
    flat = weight.reshape(1, -1) if spec.granularity == "tensor" else weight
    return storable(fit_scale(flat, torch.ones_like(flat[0])), spec)


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor U of the inverse of the damped ``gram`` ``[I, I]``: (H + d I)^-1 = U^T U.

    ``damping`` is the share of the mean diagonal that is added to it. Inputs that are always zero are harmless.
    """
    diagonal = gram.diagonal()
    damped = gram.double() + torch.diag((damping * diagonal.mean() + 1e-8).expand_as(diagonal).double())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).to(gram.dtype)


def ternarize_with_feedback(weight: Tensor, factor: Tensor, spec: TernarySpec) -> Ternarized:
    """Return the ternarised ``weight [O, I]`` that keeps ``weight @ x`` for the inputs behind ``factor [I, I]``.

    Both float32. ``factor`` is `inverse_factor` of the inputs' Gram matrix; matrices with the same inputs share it.
    """
    # The cost of an error in column j, once later columns have made up for it: error^2 / U_jj^2.
    importance = factor.diagonal().square().reciprocal()
    columns = weight.shape[1]
    rest = weight.t().contiguous().float()  # [I, O]: a column of the weight is one row, contiguous
    latent = torch.empty_like(rest)
    scales: list[Tensor] = []
    span = columns
    if spec.granularity == "group":
        span = spec.group_size
    else:
        scales = [_span_scale(rest, importance, spec)]
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(start + BLOCK_COLUMNS, columns)
        if start % span == 0 and spec.granularity == "group":
            reach = min(start + span, columns)
            scales.append(_span_scale(rest[start:reach], importance[start:reach], spec))
        errors = _round_block(rest, latent, factor, scales[-1], start, end)
        if end < columns:
            rest[end:].addmm_(factor[start:end, end:].t(), errors, alpha=-1)
    scale = torch.stack(scales, dim=1) if spec.granularity == "group" else scales[0]
    if spec.granularity == "tensor":
        scale = scale[:1]
    return Ternarized(latent.t().contiguous(), scale)


def _span_scale(columns: Tensor, importance: Tensor, spec: TernarySpec) -> Tensor:
    """The storable scale of each row over the span ``columns [n, O]``; for ``tensor`` the same for all rows."""
    if spec.granularity == "tensor":
        flat = columns.t().reshape(1, -1)
        one = fit_scale(flat, importance.repeat(columns.shape[1]))
        return storable(one, spec).expand(columns.shape[1]).contiguous()
    return storable(fit_scale(columns.t(), importance), spec)


def _round_block(rest: Tensor, latent: Tensor, factor: Tensor, scale: Tensor, start: int, end: int) -> Tensor:
    """Round columns ``start`` to ``end`` of ``rest [I, O]``, updating those within; return their errors ``[n, O]``."""
    errors = rest.new_empty(end - start, rest.shape[1])
    limit = LATENT_LIMIT * scale
    for j in range(start, end):
        column = rest[j]
        rounded = (column / scale).round_().clamp_(-1, 1).mul_(scale)
        torch.minimum(torch.maximum(column, -limit), limit, out=latent[j])
        error = torch.sub(column, rounded, out=errors[j - start]).div_(factor[j, j])
        if j + 1 < end:
            rest[j + 1 : end].addr_(factor[j, j + 1 : end], error, alpha=-1)
    return errors
