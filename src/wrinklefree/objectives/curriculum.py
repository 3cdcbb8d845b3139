"""The curriculum: a pure function from progress (0 to 1 of the budget) to what training should look like there.

Phases follow one another. ``step`` applies a phase's values as they are; ``linear`` and ``cosine`` move from the
previous phase's values to this phase's across the whole of this phase. The first phase is constant. A value that a
phase does not name is its base: the objective's own weight, the data's own mixture, strength 1, lr scale 1.

There is no state: the position is the progress, and whoever resumes knows it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wrinklefree.errors import InputError, unknown_name

Interpolation = Literal["step", "linear", "cosine"]
_INTERPOLATIONS = ("step", "linear", "cosine")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Phase:
    """Up to ``end`` (a share of the budget): weights of objectives, of data sources, strength lambda, lr scale."""

    name: str
    end: float
    objectives: Mapping[str, float] = field(default_factory=dict)
    data: Mapping[str, float] = field(default_factory=dict)
    strength: float = 1.0
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Setting:
    """The values at one moment. ``data`` is empty when no phase names a mixture. ``strength`` multiplies lambda."""

    phase: str
    weights: dict[str, float]
    data: dict[str, float]
    strength: float
    lr_scale: float


@dataclass(frozen=True)
class Curriculum:
    """``base``: the objectives' own weights. Without phases, they hold from beginning to end.

    Raises: InputError for ends that do not rise to 1, names that are no objective, or values out of range.
    """

    base: Mapping[str, float]
    phases: Sequence[Phase] = ()
    interpolation: Interpolation = "step"

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise unknown_name("curriculum.interpolation", self.interpolation, _INTERPOLATIONS)
        before = 0.0
        for phase in self.phases:
            if not before < phase.end <= 1.0:
                raise InputError(
                    f"curriculum phase {phase.name!r}: end {phase.end} must lie above {before} and at most at 1"
                )
            before = phase.end
            for name in phase.objectives:
                if name not in self.base:
                    raise unknown_name(f"objective in curriculum phase {phase.name!r}", name, self.base)
            if not 0.0 <= phase.strength <= 1.0 or phase.lr_scale < 0.0:
                raise InputError(f"curriculum phase {phase.name!r}: strength must lie in 0 to 1, lr_scale not below 0")
            if min((*phase.objectives.values(), *phase.data.values(), 0.0)) < 0.0:
                raise InputError(f"curriculum phase {phase.name!r}: weights must not be negative")
        if self.phases and abs(before - 1.0) > _ROUNDING:
            raise InputError(f"curriculum: the last phase ends at {before}, it must end at 1")

    def at(self, progress: float) -> Setting:
        """Return the setting at ``progress``; values beyond 0 to 1 mean the ends."""
        if not self.phases:
            return Setting("all", dict(self.base), {}, 1.0, 1.0)
        progress = min(max(progress, 0.0), 1.0)
        index = self._index(progress)
        here = self._values(self.phases[index])
        if index == 0 or self.interpolation == "step":
            return here
        before = self._values(self.phases[index - 1])
        start = self.phases[index - 1].end
        share = (progress - start) / (self.phases[index].end - start)
        if self.interpolation == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        return _between(before, here, share)

    def ever(self, names: Sequence[str], progress: float = 0.0) -> bool:
        """Return whether any of the objectives has a weight above 0 at ``progress`` or later."""
        if not self.phases:
            return any(self.base.get(name, 0.0) > 0.0 for name in names)
        settings = [self.at(progress), *(self._values(p) for p in self.phases[self._index(progress) :])]
        return any(setting.weights.get(name, 0.0) > 0.0 for setting in settings for name in names)

    def _index(self, progress: float) -> int:
        # At a boundary the phase that ends there still holds.
        for index, phase in enumerate(self.phases):
            if progress <= phase.end + _ROUNDING:
                return index
        return len(self.phases) - 1

    def _values(self, phase: Phase) -> Setting:
        weights = {**self.base, **phase.objectives}
        return Setting(phase.name, weights, dict(phase.data), phase.strength, phase.lr_scale)


def _between(a: Setting, b: Setting, share: float) -> Setting:
    def mix(x: float, y: float) -> float:
        return x + share * (y - x)

    sources = a.data.keys() | b.data.keys()
    return Setting(
        phase=b.phase,
        weights={name: mix(a.weights[name], b.weights[name]) for name in b.weights},
        data={name: mix(a.data.get(name, 0.0), b.data.get(name, 0.0)) for name in sorted(sources)},
        strength=mix(a.strength, b.strength),
        lr_scale=mix(a.lr_scale, b.lr_scale),
    )


@dataclass(frozen=True)
class StrengthWarmup:
    """The quantisation strength lambda as a function of progress.

    ``linear`` lambda = p / T, ``cosine`` lambda = (1 - cos(pi p / T)) / 2, then 1; T = ``warmup`` as a share of the
    budget; ``constant`` is 1 throughout. Scaled to run from ``start`` to ``end``.
    Source: the Hugging Face recipe for 1.58-bit fine-tuning (linear).
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = 0.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise unknown_name("strength.kind", self.kind, ("constant", "linear", "cosine"))
        if not 0.0 <= self.warmup <= 1.0 or not 0.0 <= self.start <= self.end <= 1.0:
            raise InputError("strength: warmup must lie in 0 to 1, and 0 <= start <= end <= 1")

    def at(self, progress: float) -> float:
        """Return lambda at ``progress``."""
        if self.kind == "constant" or self.warmup == 0.0 or progress >= self.warmup:
            return self.end
        share = max(progress, 0.0) / self.warmup
        if self.kind == "cosine":
            share = (1.0 - math.cos(math.pi * share)) / 2.0
        return self.start + share * (self.end - self.start)
