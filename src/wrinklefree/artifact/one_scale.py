"""One scale for a matrix that has finer ones: the nearest in the sense of least squares, its codes unchanged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def one_scale(codes: NDArray[np.int8], scales: NDArray[np.float32], group_size: int) -> NDArray[np.float32]:
    """Return the step float32 ``[1]`` nearest to scales ``[O]`` or ``[O, G]`` for codes int8 ``[O, I]``.

    The sum over weights of ``(s c - s_own c)^2`` is least where s is the mean of the own scales, each counted as often
    as codes other than zero use it.
    """
    if scales.ndim == 1:
        uses = np.count_nonzero(codes, axis=1)
    else:
        starts = np.arange(0, codes.shape[1], group_size)
        uses = np.add.reduceat(codes != 0, starts, axis=1, dtype=np.int64)
    total = int(uses.sum())
    mean = float((uses * scales.astype(np.float64)).sum() / total) if total else float(scales.mean())
    return np.array([mean], np.float32)
