"""What a study's trials say: the best, the best so far, who is not dominated, and how much each parameter matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from wrinklefree.sweep.space import CHOICE, MINIMIZE, Parameter, Space, Value
from wrinklefree.sweep.table import Event
from wrinklefree.sweep.trial import COMPLETE, Trial

MIN_TRIALS_FOR_IMPORTANCE = 8
_SHUFFLES = 400


def _no_commands(trial: Trial) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Findings:
    """A study as its report reads it; the first objective orders the trials. ``repeat``: a trial's command lines."""

    space: Space
    trials: tuple[Trial, ...]
    events: tuple[Event, ...] = ()
    repeat: Callable[[Trial], Sequence[str]] = _no_commands

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the objectives."""
        return tuple(self.space.objectives)

    def minimizes(self, figure: str) -> bool:
        return self.space.objectives[figure] == MINIMIZE

    def value(self, trial: Trial, figure: str | None = None) -> float:
        """Return a trial's figure (default: the first objective), not a number where it has none that is finite."""
        found = trial.figures.get(figure or self.figures[0], math.nan)
        return float(found) if math.isfinite(found) else math.nan

    def measured(self, *figures: str) -> list[Trial]:
        """Return complete trials with finite values of the first objective and of ``figures``, by number."""
        needed = (self.figures[0], *figures)
        return [t for t in self.trials if t.state == COMPLETE and all(math.isfinite(self.value(t, f)) for f in needed)]

    def ranked(self) -> list[Trial]:
        """Return the measured trials that keep all constraints, the best first; of equal ones the earlier first."""
        sign = 1 if self.minimizes(self.figures[0]) else -1
        kept = [trial for trial in self.measured() if self.space.feasible(trial.figures)]
        return sorted(kept, key=lambda trial: (sign * self.value(trial), trial.number))

    def best(self) -> list[Trial]:
        """Return the best trial, none where there is none; with several objectives the front."""
        return self.front() if len(self.figures) > 1 else self.ranked()[:1]

    def best_so_far(self) -> list[tuple[int, float]]:
        """Return (trial number, best value among the ranked trials up to it) for every ranked trial, by number."""
        choose = min if self.minimizes(self.figures[0]) else max
        steps: list[tuple[int, float]] = []
        for trial in sorted(self.ranked(), key=lambda trial: trial.number):
            value = self.value(trial)
            steps.append((trial.number, choose(value, steps[-1][1]) if steps else value))
        return steps

    def front(self) -> list[Trial]:
        """Return the ranked trials that no other one dominates, in their order; empty with one objective.

        One trial dominates another when it is as good in every objective and better in one.
        """
        if len(self.figures) < 2:
            return []
        complete = self.measured(*self.figures)
        trials = [trial for trial in self.ranked() if trial in complete]
        signs = [1 if self.minimizes(figure) else -1 for figure in self.figures]
        rows = [[sign * self.value(t, f) for sign, f in zip(signs, self.figures, strict=True)] for t in trials]
        values = np.array(rows, dtype=float).reshape(len(trials), len(self.figures))
        return [
            trial
            for trial, mine in zip(trials, values, strict=True)
            if not bool((np.all(values <= mine, axis=1) & np.any(values < mine, axis=1)).any())
        ]


def place(parameter: Parameter, value: Value) -> float:
    """Return where a value stands on its parameter's axis: its choice's index, its logarithm (base 10), or itself."""
    if parameter.kind == CHOICE:
        return float(parameter.values.index(value))
    return math.log10(float(value)) if parameter.log else float(value)


@dataclass(frozen=True)
class Importance:
    """How much of the variance of the objective's ranks a parameter alone explains.

    ``share``: from 0 to 1. ``chance``: the share that 95 % of shuffled values stay under; a share that is not above
    it shows nothing. ``trials``: how many had the parameter (a conditional one is not always there).
    """

    name: str
    share: float
    chance: float
    trials: int

    @property
    def shown(self) -> bool:
        return self.share > self.chance


def importance(study: Findings, seed: int = 0) -> list[Importance]:
    """Return each parameter's importance, the largest first; without those that fewer than
    `MIN_TRIALS_FOR_IMPORTANCE` trials had, or that had one value only.

    Values of the objective are replaced by their ranks, so that one diverged trial decides nothing. A range explains
    what a parabola in its own rank fits, a choice what its group means fit. A conditional parameter is judged among
    the trials that have it. Parameters are looked at one by one: what only two together do is not seen, and a search
    that has settled on a value no longer shows what that value is worth.
    """
    trials = study.measured()
    found = []
    for parameter in study.space.parameters:
        having = [trial for trial in trials if parameter.name in trial.parameters]
        places = np.array([place(parameter, trial.parameters[parameter.name]) for trial in having])
        if len(having) < MIN_TRIALS_FOR_IMPORTANCE or len(set(places.tolist())) < 2:
            continue
        ranks = _ranks(np.array([study.value(trial) for trial in having]))
        basis = _basis(places, parameter.kind == CHOICE)
        generator = np.random.default_rng(seed)
        shuffled = [_explained(basis, generator.permutation(ranks)) for _ in range(_SHUFFLES)]
        chance = float(np.quantile(shuffled, 0.95))
        found.append(Importance(parameter.name, _explained(basis, ranks), chance, len(having)))
    return sorted(found, key=lambda each: -each.share)


def _basis(places: np.ndarray, groups: bool) -> np.ndarray:
    """Return an orthonormal basis [trials, columns] of what the parameter can explain beyond the mean."""
    if groups:
        columns = (places[:, None] == np.unique(places)[None, :]).astype(float)
    else:
        rank = _ranks(places)
        columns = np.stack([rank, rank**2], axis=1)
    columns = columns - columns.mean(axis=0)
    basis, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return basis[:, sizes > 1e-9 * sizes.max()]


def _explained(basis: np.ndarray, ranks: np.ndarray) -> float:
    centred = ranks - ranks.mean()
    total = float(centred @ centred)
    return float(np.sum((basis.T @ centred) ** 2)) / total if total > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks from 0 to 1, equal values sharing their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return (middle / max(len(values) - 1, 1))[group]
