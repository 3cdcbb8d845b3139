"""How the numbers and scales of a 6-bit or 4-bit table are chosen; what their bytes mean is in tables.py.

Plain: each group's scale has the smallest squared error of the weights. With ``moments`` E[x x^T] of the vectors x that
the table multiplies (a head's inputs): the scales weigh each column's error by how large x is there, and rounding is
followed by error compensation, so that the error of w . x is small rather than that of w. A head's inputs need it:
a few of their dimensions hold most of their length (docs/log.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError

# Where the group's largest value may land, as a multiple of the range's ends: tried one after the other. More of them,
# or finer ones, change the squared error by less than one per cent; with weights the largest value may be clipped.
_TRIED = (0.95, 1.0, 1.05)
_TRIED_WEIGHTED = (0.95, 1.0, 1.05, 1.2, 1.4)
_GROUPS_AT_A_TIME = 1 << 16  # keeps the arrays of a fit near the cache
# Added to the diagonal of the moments, as a share of its mean: what short calibration texts leave out.
DAMPING = 0.3
_COLUMNS_AT_A_TIME = 64


def fit_table(
    weight: NDArray[np.float32], width: int, largest: int, moments: NDArray[np.floating[Any]] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Return numbers ``[V, D]`` from ``-largest - 1`` to ``largest`` and scales ``[V, ceil(D / width)]``.

    ``moments`` ``[D, D]``, or None for the plain fit, which is the same on every machine with IEEE arithmetic.

    Raises: InputError for values too large for a scale or moments of another size.
    """
    rows, columns = weight.shape
    if moments is not None and moments.shape != (columns, columns):
        raise InputError(f"moments: found shape {moments.shape}, needed is {(columns, columns)}")
    groups = -(-columns // width)
    padded = np.pad(weight, ((0, 0), (0, groups * width - columns))).reshape(-1, width)
    importance = None
    if moments is not None:
        diagonal = np.diag(moments)
        # The mean on top, for the rows looked up as embeddings and for text unlike the calibration's.
        importance = np.pad(diagonal / max(diagonal.mean(), 1e-30) + 1, (0, groups * width - columns))
        importance = importance.reshape(groups, width).astype(np.float32)
    scales = np.empty(rows * groups, np.float16)
    numbers = np.empty(padded.shape, np.int8)
    step = max(1, _GROUPS_AT_A_TIME // groups) * groups
    for start in range(0, len(padded), step):
        part = slice(start, start + step)
        repeated = None if importance is None else np.tile(importance, (len(padded[part]) // groups, 1))
        scales[part], numbers[part] = _fit(padded[part], largest, repeated)
    scales = scales.reshape(rows, groups)
    if moments is None:
        return numbers.reshape(rows, -1)[:, :columns], scales
    return _compensated(weight, scales, width, largest, moments), scales


def _fit(
    groups: NDArray[np.float32], largest: int, importance: NDArray[np.float32] | None
) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Return scales ``[N]`` and numbers ``[N, width]`` of groups ``[N, width]``.

    Each scale tried is replaced by the least-squares one of the numbers it gives; of these that with the smallest
    squared error, the first of equals. The numbers are those of the scale as float16 stores it.
    """
    peaks = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)[:, 0]
    weighted = groups if importance is None else groups * importance
    best = np.zeros(len(groups), np.float16)
    numbers = np.zeros(groups.shape, np.int8)
    error = np.full(len(groups), np.inf, np.float32)
    for start in _starts(peaks, largest, _TRIED if importance is None else _TRIED_WEIGHTED):
        rounded = _rounded(groups, start, largest)
        square = rounded if importance is None else rounded * importance
        scale = _half(_sums(weighted * rounded) / np.maximum(_sums(square * rounded), np.float32(1e-20)))
        rounded = _rounded(groups, scale.astype(np.float32), largest)
        left = groups - rounded * scale.astype(np.float32)[:, None]
        found = _sums(left * left if importance is None else left * left * importance)
        better = found < error
        error[better], best[better], numbers[better] = found[better], scale[better], rounded[better]
    return best, numbers


def _compensated(
    weight: NDArray[np.float32],
    scales: NDArray[np.float16],
    width: int,
    largest: int,
    moments: NDArray[np.floating[Any]],
) -> NDArray[np.int8]:
    """Return numbers ``[V, D]`` rounded column by column, each error spread over the columns still to come.

    Source: arXiv 2210.17323 (GPTQ), equations 2 and 3 with the Cholesky form of its algorithm 1; columns with the
    largest moments first. Differs: scales are fixed beforehand.
    """
    rows, columns = weight.shape
    damped = moments.astype(np.float64) + DAMPING * max(float(np.diag(moments).mean()), 1e-30) * np.eye(columns)
    order = np.argsort(-np.diag(damped), kind="stable")
    spread = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(order, order)])).T.astype(np.float32)  # upper triangle
    left = np.ascontiguousarray(weight[:, order].T)  # [D, V]
    numbers = np.empty((rows, columns), np.int8)
    for begin in range(0, columns, _COLUMNS_AT_A_TIME):
        end = min(begin + _COLUMNS_AT_A_TIME, columns)
        errors = np.empty((end - begin, rows), np.float32)
        for at in range(begin, end):
            scale = scales[:, order[at] // width].astype(np.float32)
            rounded = _rounded(left[at][:, None], scale, largest)[:, 0]
            numbers[:, order[at]] = rounded
            errors[at - begin] = (left[at] - rounded * scale) / spread[at, at]
            left[at + 1 : end] -= spread[at, at + 1 : end, None] * errors[at - begin]
        left[end:] -= spread[begin:end, end:].T @ errors
    return numbers


def _starts(peaks: NDArray[np.float32], largest: int, tried: tuple[float, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield the scales to try: the largest value near the long end of the range, then near the short end."""
    for end in (-(largest + 1), largest):
        for part in tried:
            yield peaks / np.float32(end * part)


def _rounded(groups: NDArray[np.float32], scale: NDArray[np.float32], largest: int) -> NDArray[np.float32]:
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    return np.clip(np.rint(groups * inverse[:, None]), -largest - 1, largest)


def _sums(products: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums ``[N]`` of ``[N, power of two]``, halves added to halves: one order on every machine."""
    while (half := products.shape[1] // 2) > 0:
        products = products[:, :half] + products[:, half:]
    return products[:, 0]


def _half(scales: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all():
        raise InputError("quantize_table: found a value too large for a float16 scale")
    return half
