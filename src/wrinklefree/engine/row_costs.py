"""What further rows of a pass cost on this processor and with this model."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.windows import AUTOMATIC_WINDOW

ROWS = 2 * AUTOMATIC_WINDOW + 1  # one token, its drafts, and as many MASKs
_MEASURED = (2, 3, 4, 5, 7, 9, 13, ROWS)  # and one row before each of them: all is divided by its time
_BEHIND = 256  # positions, as in the middle of an answer: each row attends to them by itself
_SECONDS = 0.25  # to spend, but at least _LEAST rounds
_LEAST, _MOST = 2, 12


def measure_row_costs(model: Any, slot: int) -> NDArray[np.float64]:
    """Return the time of passes of 1 .. ROWS rows with all logits, divided by that of one row: float64 [ROWS].

    Behind up to 256 positions, for the rows of a decoder attend one by one.

    The least of a few rounds over some numbers of rows (what else runs on the machine only adds to it), linear in
    between, and never falling. ``slot`` of the native ``model`` must be free; its contents are lost.
    """
    sizes = [size for size in _MEASURED if size <= model.context]
    start = min(_BEHIND, model.context - max(sizes, default=1))
    model.truncate(slot, 0)
    if start:
        model.forward(slot, np.arange(start, dtype=np.int32) % model.vocab_size, None)
    logits = np.empty((ROWS, model.vocab_size), np.float32)
    order = [each for size in sizes for each in (1, size)] or [1]
    least = dict.fromkeys([1, *sizes], np.inf)
    began, rounds = time.perf_counter(), 0
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() - began < _SECONDS):
        for size in order:
            least[size] = min(least[size], _pass_seconds(model, slot, start, size, logits[:size]))
        rounds += 1
    seconds = np.maximum.accumulate(list(least.values()))
    return np.asarray(np.interp(np.arange(1, ROWS + 1), list(least), seconds / seconds[0]), np.float64)


def _pass_seconds(model: Any, slot: int, position: int, rows: int, logits: NDArray[np.float32]) -> float:
    tokens = np.arange(rows, dtype=np.int32) % model.vocab_size
    start = time.perf_counter()
    model.forward_batch([slot], [tokens], [2], logits, starts=[position], alone=[True])
    return time.perf_counter() - start
