"""When a running trial is given up: it is worse than most others were at the same step, for as long as it is asked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from wrinklefree.errors import InputError, unknown_name

Curve = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class StoppingRule:
    """Stop a trial whose objective is in the worst ``percentile`` % of all curves at the same step.

    ``percentile``: 50 stops what is worse than the median of all curves there, its own among them; 25 only the worst
    quarter. ``min_step``: nothing is stopped before this step. ``max_step``: nothing is stopped after it (None: always
    possible). ``min_curves``: nothing is stopped until so many trials are complete, and only at steps that so many
    curves reach. ``patience``, in steps: the trial has to be in the worst part at every step of its last ``patience``
    steps; 0 looks at the last step alone. ``keep_best``: the best so many at a step are never stopped there.

    Source: the percentile rule of Ax 1.3, `PercentileEarlyStoppingStrategy`; with ``percentile`` 50 it is close to the
    median rule of Golovin et al., Google Vizier, 2017, section 3.1.
    Differs: a value that is not finite is the worst there is, where Ax leaves it out, so that a trial which diverged
    is stopped.
    """

    percentile: float = 50.0
    min_step: float = 10.0
    max_step: float | None = None
    min_curves: int = 5
    patience: float = 0.0
    keep_best: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise InputError(f"percentile {self.percentile}: between 0 and 100 is needed, both excluded")
        if self.min_step < 0 or not 0 <= self.patience <= self.min_step:
            raise InputError(f"patience {self.patience}: at least 0 and at most min_step ({self.min_step}) is needed")
        if self.max_step is not None and self.max_step < self.min_step:
            raise InputError(f"max_step {self.max_step}: at least min_step ({self.min_step}) is needed")
        if self.min_curves < 1 or self.keep_best < 0:
            raise InputError("min_curves must be at least 1 and keep_best at least 0")


def read_rule(values: Mapping[str, Any], place: str) -> StoppingRule:
    """Return the rule of a mapping, as a file has it; ``place`` names the mapping in messages.

    Raises: InputError for an unknown key, a value that is no number, or one out of range.
    """
    allowed = {field.name for field in fields(StoppingRule)}
    for name, value in values.items():
        if name not in allowed:
            raise InputError(f"{place}: {unknown_name('key', str(name), allowed)}")
        none = name == "max_step" and value is None
        if isinstance(value, bool) or not (none or isinstance(value, int | float)):
            raise InputError(f"{place}: {name} is {value!r}, a number is needed")
        if name in ("min_curves", "keep_best") and not isinstance(value, int):
            raise InputError(f"{place}: {name} is {value!r}, a whole number is needed")
    try:
        return StoppingRule(**values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def reason_to_stop(
    rule: StoppingRule, curve: Curve, complete: Iterable[Curve], others: Iterable[Curve] = (), minimize: bool = True
) -> str | None:
    """Return why a running trial should be stopped, None where it should go on.

    ``curve``: (step, value) pairs of the trial so far. ``complete``: curves of complete trials; ``others``: curves of
    trials that run or were stopped. Between its points a curve is a line; before its first and after its last point
    it says nothing.
    """
    finished = [_arrays(each, minimize) for each in complete if each]
    if not curve or len(finished) < rule.min_curves:
        return None
    steps, values = _arrays(curve, minimize)
    last = steps[-1]
    if last < rule.min_step or (rule.max_step is not None and last > rule.max_step):
        return None
    known = [*finished, *(_arrays(each, minimize) for each in others if each), (steps, values)]
    looked_at = np.unique(np.concatenate([each[0] for each in known]))
    looked_at = looked_at[(looked_at >= last - rule.patience) & (looked_at <= last)]
    for step in looked_at:
        if not _is_bad(rule, float(step), (steps, values), known):
            return None
    sign = "above" if minimize else "below"
    return (
        f"objective {_plain(curve[-1][1])} at step {last:g}: {sign} the limit that {rule.percentile:g} % of "
        f"{len(known)} curves set" + (f" for {rule.patience:g} steps" if rule.patience else "")
    )


def _is_bad(
    rule: StoppingRule, step: float, own: tuple[np.ndarray, np.ndarray], known: list[tuple[np.ndarray, np.ndarray]]
) -> bool:
    """Whether the trial is in the worst part at this step; where too few curves reach it nobody is."""
    at = [value for steps, values in known if (value := _value(steps, values, step)) is not None]
    mine = _value(*own, step)
    if mine is None or len(at) < rule.min_curves:
        return False
    if rule.keep_best and len({value for value in at if value < mine}) < rule.keep_best:
        return False
    return mine > _quantile(sorted(at), 1 - rule.percentile / 100)


def _value(steps: np.ndarray, values: np.ndarray, step: float) -> float | None:
    """Return the curve's value at a step, None outside the curve; next to a value that is not finite it is infinite."""
    if not steps[0] <= step <= steps[-1]:
        return None
    right = int(np.searchsorted(steps, step))
    if steps[right] == step:
        return float(values[right])
    share = (step - steps[right - 1]) / (steps[right] - steps[right - 1])
    low, high = float(values[right - 1]), float(values[right])
    return low + share * (high - low) if math.isfinite(low) and math.isfinite(high) else math.inf


def _quantile(ordered: list[float], share: float) -> float:
    """Linear between the neighbours, as pandas and numpy do it; written out because infinities may stand there."""
    place = share * (len(ordered) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low if low == high else low + (place - math.floor(place)) * (high - low)


def _arrays(curve: Curve, minimize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Steps rising, the last value of a step that came twice; values so that lower is better, infinite for none."""
    last = {float(step): value for step, value in curve}
    steps = np.array(sorted(last))
    values = np.array([_number(last[step]) for step in steps]) * (1 if minimize else -1)
    return steps, np.where(np.isfinite(values), values, np.inf)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _plain(value: float | None) -> str:
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.6g}"
