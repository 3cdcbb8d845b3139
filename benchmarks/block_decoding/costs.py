"""What a pass costs by its number of rows, relative to one row: the denominator of every speed-up."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np

from wrinklefree.engine import Batch, BatchItem, Engine

ROWS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)
BEFORE_TOKENS = 64  # in the cache, so that attention has something to read
TOKENS_PER_FORWARD = (1.5, 2.0, 2.5, 3.0, 4.0)


def row_costs(engine: Engine, repeats: int, rows: Sequence[int] = ROWS) -> list[dict[str, Any]]:
    """Return for each number of rows the median time of a pass that wants a choice of every row, round by round.

    Each row of the result has ``rows``, ``milliseconds``, ``relative`` to one row (median of the rounds' ratios), the
    quarters of these ratios (``low``, ``high``), and ``undisturbed``: the ratio of the least times of all rounds, which
    other work on the machine changes least.
    """
    times: dict[int, list[float]] = {number: [] for number in rows}
    with Batch(engine) as batch:
        slot = batch.open()
        before = np.arange(1, BEFORE_TOKENS + 1, dtype=np.int32) % engine.vocab_size
        batch.choose([BatchItem(slot, before, want="none")])
        for repeat in range(-1, repeats):  # round -1 warms up
            for number in rows if repeat % 2 else reversed(rows):
                tokens = (np.arange(number, dtype=np.int32) * 7 + 11 * (repeat + 2)) % engine.vocab_size
                start = perf_counter()
                batch.choose([BatchItem(slot, tokens, want="all", start=BEFORE_TOKENS)])
                seconds = perf_counter() - start
                if repeat >= 0:
                    times[number].append(seconds)
    ones = times[rows[0]]
    found = []
    for number in rows:
        ratios = [seconds / one for seconds, one in zip(times[number], ones, strict=True)]
        low, high = np.quantile(ratios, (0.25, 0.75))
        found.append({
            "rows": number, "milliseconds": 1e3 * statistics.median(times[number]),
            "relative": statistics.median(ratios), "low": float(low), "high": float(high),
            "undisturbed": min(times[number]) / min(ones),
        })  # fmt: skip
    return found


def relative_cost(costs: Sequence[dict[str, Any]], rows: float) -> float:
    """Return the cost of a pass of so many rows, linear between measured numbers and beyond the last two."""
    numbers = [cost["rows"] for cost in costs]
    values = [cost["relative"] for cost in costs]
    if rows > numbers[-1] and len(numbers) > 1:
        slope = (values[-1] - values[-2]) / (numbers[-1] - numbers[-2])
        return float(values[-1] + slope * (rows - numbers[-1]))
    return float(np.interp(rows, numbers, values))


def possible_speed_ups(costs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a model with so many tokens per forward would gain here with passes of so many rows."""
    return [
        {"rows": cost["rows"], **{f"{tokens:g}": tokens / cost["relative"] for tokens in TOKENS_PER_FORWARD}}
        for cost in costs
    ]
