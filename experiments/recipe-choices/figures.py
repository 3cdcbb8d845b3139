"""What the results of a scale say: files read, and the statistics of the report. No figure is written here by hand."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def read(results: Path, table: str) -> dict[str, list[Result]]:
    """Return the results of a table by arm, each in the order of its seeds."""
    found: dict[str, list[Result]] = {}
    for path in sorted((results / table).glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["arm"], []).append(result)
    return {arm: sorted(runs, key=lambda run: run["seed"]) for arm, runs in found.items()}


def final_loss(run: Result) -> float:
    """Held-out loss after the last stage in nats per token; NaN of a run that did not get there."""
    return float(run["stages"][-1].get("held_out", {}).get("loss", math.nan))


def first_loss(run: Result) -> float:
    """Held-out loss where the last stage starts, at full strength; NaN when no stage is before it."""
    return float(run["stages"][-2]["held_out"]["loss"]) if len(run["stages"]) > 1 else math.nan


def last_steps(run: Result, stage: int = -1, steps: int = 10, column: str = "ce") -> float:
    """Mean of a column of the training curve over the last steps of a stage."""
    return statistics.fmean(run["stages"][stage]["curve"][column][-steps:])


def spread(values: Iterable[float], digits: int = 3, signed: bool = False) -> str:
    """Return mean ± standard deviation (n - 1); one value stands alone."""
    kept = [value for value in values if not math.isnan(value)]
    sign = "+" if signed else ""
    if not kept:
        return "-"
    mean = f"{statistics.fmean(kept):{sign}.{digits}f}"
    return f"{mean} ± {statistics.stdev(kept):.{digits}f}" if len(kept) > 1 else mean


def paired(
    runs: Sequence[Result], base: Sequence[Result], value: Callable[[Result], float] = final_loss
) -> list[float]:
    """Return the differences to ``base`` at equal seeds."""
    other = {run["seed"]: value(run) for run in base}
    return [value(run) - other[run["seed"]] for run in runs if run["seed"] in other]


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Return the value at ``at`` between points, straight in the logarithm of x; NaN outside of them."""
    ordered = sorted(points)
    for (x0, y0), (x1, y1) in pairwise(ordered):
        if x0 <= at <= x1:
            return y0 + (y1 - y0) * (math.log(at) - math.log(x0)) / (math.log(x1) - math.log(x0))
    return math.nan


def step_seconds(runs: Iterable[Result], stage: str) -> float:
    """Return processor seconds a step of a stage, start and scoring left out: the slope over runs of several lengths.

    Wall-clock time would count the machine's other work, too.
    """
    stages = [found for run in runs for found in run["stages"] if found["name"] == stage]
    points = [(len(found["curve"]["step"]), found["cpu_seconds"]) for found in stages if found["cpu_seconds"]]
    if len({x for x, _ in points}) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def median_step(run: Result, skip: int) -> float:
    """Return the median of a step's wall-clock seconds after the first ``skip``, which compile or warm up."""
    return statistics.median(run["stages"][-1]["curve"]["seconds"][skip:])
