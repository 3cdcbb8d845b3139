"""The figures of tasks: each metric with its standard error, and the averages of presets and groups with theirs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# Means of accuracies have a standard error in closed form; of other aggregates it is that of so many resamples.
RESAMPLES = 200
# Shares of right answers, in the order in which an average takes them; other figures are not averaged over tasks.
SHARES = ("acc_norm", "acc", "exact_match", "exact")


@dataclass(frozen=True)
class Estimate:
    """A metric's value; ``standard_error`` is None where it cannot be told (a single document)."""

    value: float
    standard_error: float | None
    higher_is_better: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(items: Sequence[Any], aggregate: Callable[[Sequence[Any]], float], higher_is_better: bool) -> Estimate:
    """Return the aggregate of a metric's items, one for each document.

    The standard error of a mean is the sample's; of all else it is the spread of the aggregate over `RESAMPLES` draws
    of as many documents, from a fixed seed.
    """
    value = float(aggregate(items))
    if len(items) < 2:
        return Estimate(value, None, higher_is_better)
    if _is_mean(items, value):
        spread = float(np.std(np.asarray(items, np.float64), ddof=1) / math.sqrt(len(items)))
    else:
        spread = _resampled(items, aggregate)
    return Estimate(value, spread if math.isfinite(spread) else None, higher_is_better)


def _is_mean(items: Sequence[Any], value: float) -> bool:
    try:
        numbers = np.asarray(items, np.float64)
    except (TypeError, ValueError):
        return False
    return numbers.ndim == 1 and math.isclose(float(numbers.mean()), value, rel_tol=1e-12, abs_tol=1e-15)


def _resampled(items: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> float:
    draws = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
    return float(np.std([aggregate([items[i] for i in row]) for row in draws], ddof=1))


def primary(metrics: Mapping[str, Estimate]) -> str:
    """Return the metric that averages take: acc_norm where a task has it, then acc, then a task's first."""
    return next((name for name in SHARES if name in metrics), next(iter(metrics)))


def mean(figures: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """Return the (weighted) mean of tasks' figures; tasks are independent, so their errors add in squares."""
    shares = np.asarray(weights if weights is not None else [1.0] * len(figures), np.float64)
    shares = shares / shares.sum()
    errors = [each.standard_error for each in figures]
    spread = None
    if all(error is not None for error in errors):
        spread = float(np.sqrt(sum((share * (error or 0.0)) ** 2 for share, error in zip(shares, errors, strict=True))))
    value = float(sum(share * each.value for share, each in zip(shares, figures, strict=True)))
    return Estimate(value, spread, all(each.higher_is_better for each in figures))
