"""Whether the run's targets are met, computed from its figures.

Quality: the perplexity of the ternary model, token by token, on held-out text divided by the teacher's. It is the
geometric mean over the kinds of text that were trained on, each of the same weight; kinds that nothing was trained on
stand beside it. Speed: the fastest way to decode by blocks, against token by token in the same run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from held_text import TRAINED
from text_figures import paired

PERPLEXITY_RATIO = 1.35  # of the ternary model to the teacher, at most
SPEED_UP = 1.3  # of decoding by blocks to token by token, more than that
WITHIN = 0.10
_ROUNDING = 1e-9
MET, NEAR, MISSED = "met", "within 10 %", "missed"


@dataclass(frozen=True)
class Ratio:
    """Of two perplexities; ``error``: its standard error over documents, None where there is one document only."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.value:.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def ratio(student: Mapping[str, Any], teacher: Mapping[str, Any], kinds: Iterable[str] = TRAINED) -> Ratio | None:
    """Return the geometric mean over ``kinds`` of two models' perplexity ratios, by their losses on each kind.

    None where none of the kinds was measured.
    """
    found = [paired(student[kind], teacher[kind]) for kind in kinds if kind in student and kind in teacher]
    if not found:
        return None
    value = math.exp(sum(apart for apart, _ in found) / len(found))
    errors = [error for _, error in found if error is not None]
    if len(errors) < len(found):
        return Ratio(value, None)
    return Ratio(value, value * math.sqrt(sum(error**2 for error in errors)) / len(found))


def at_most(value: float, target: float) -> str:
    """Return whether a value that should be small reaches its target, or is within 10 % of it."""
    return MET if value <= target else NEAR if value <= target * (1.0 + WITHIN) + _ROUNDING else MISSED


def more_than(value: float, target: float) -> str:
    """Return whether a value that should be large is above its target, or within 10 % of it."""
    return MET if value > target else NEAR if value >= target * (1.0 - WITHIN) - _ROUNDING else MISSED


def quality(losses: Mapping[str, Mapping[str, Any]], delivered: str) -> str:
    """Return the verdict on the delivered model's perplexity. Raises: SystemExit when it was not measured."""
    found = ratio(losses.get(delivered, {}), losses.get("teacher", {}))
    if found is None:
        raise SystemExit(f"{delivered}: its held-out loss was not measured on any kind of text that it was trained on")
    return at_most(found.value, PERPLEXITY_RATIO)


def is_good_enough(losses: Mapping[str, Mapping[str, Any]], delivered: str) -> bool:
    """Return whether the model may be delivered: its quality reaches the target within 10 %."""
    return quality(losses, delivered) != MISSED


def fastest(speed: Mapping[str, Any], mode: str) -> dict[str, Any] | None:
    """Return the fastest way whose name begins with ``mode`` ("block", "speculative"), None where there is none."""
    ways = [way for way in speed["ways"] if way["name"].startswith(mode) and way["speed_up"] is not None]
    return max(ways, key=lambda way: way["speed_up"]) if ways else None
