"""From what a source is worth to its share of the sequences: bounded weights, slow updates, and online mixing.

Shapes: K sources. All arrays are float64 and all of it is arithmetic on the CPU, so that every process of a run that
is given the same numbers finds the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wrinklefree.errors import InputError

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """The smallest and the largest share that a source may have.

    Raises: InputError when they are no shares, or the wrong way round.
    """

    low: float = 0.05
    high: float = 0.60

    def __post_init__(self) -> None:
        if not 0.0 <= self.low <= self.high <= 1.0:
            raise InputError(f"mixture bounds: found {self.low} to {self.high}, needed is 0 <= min <= max <= 1")

    def check(self, sources: int) -> None:
        """Raise InputError when ``sources`` shares within the bounds cannot sum to 1."""
        if not self.low * sources <= 1.0 <= self.high * sources:
            raise InputError(
                f"mixture bounds: {sources} shares between {self.low} and {self.high} cannot sum to 1; choose "
                f"min_weight up to {1 / sources:.3g} and max_weight from {1 / sources:.3g} on"
            )

    def project(self, weights: ArrayLike) -> F64:
        """Return the nearest weights [K] (least squares) that lie within the bounds and sum to 1.

        They are clip(w - t, low, high) for the one t that makes the sum 1. (To clip and then to divide by the sum
        would push weights out of the bounds again.) The sum falls in straight lines as t grows, with corners where a
        weight meets a bound; t lies between the two corners around the sum 1.

        Raises: InputError when K such weights cannot sum to 1, or a weight is not finite.
        """
        values = np.asarray(weights, np.float64)
        if not np.isfinite(values).all():
            raise InputError(f"mixture weights: found {values.tolist()}, each must be a finite number")
        self.check(len(values))
        corners = np.unique(np.concatenate([values - self.high, values - self.low]))
        sums = np.array([np.clip(values - corner, self.low, self.high).sum() for corner in corners])  # falling
        after = int(np.argmax(sums <= 1.0)) if (sums <= 1.0).any() else len(corners) - 1
        if after == 0 or sums[after - 1] == sums[after]:
            t = corners[after]
        else:
            share = (sums[after - 1] - 1.0) / (sums[after - 1] - sums[after])
            t = corners[after - 1] + share * (corners[after] - corners[after - 1])
        return np.clip(values - t, self.low, self.high)


def shares_of_scores(scores: ArrayLike) -> F64:
    """Return weights [K] in proportion to the positive scores; equal ones when no score is positive."""
    positive = np.maximum(np.asarray(scores, np.float64), 0.0)
    total = positive.sum()
    return positive / total if total > 0.0 else np.full(len(positive), 1.0 / len(positive))


@dataclass
class SlowMixture:
    """Follows scores slowly: they are averaged over evaluations, and the weights go part of the way at each.

    ``rate``: the part of the way. ``smoothing``: what a new evaluation counts in the average of the scores.
    """

    bounds: Bounds
    rate: float = 0.15
    smoothing: float = 0.1
    scores: F64 | None = None

    def update(self, weights: ArrayLike, scores: ArrayLike) -> F64:
        """Return the weights [K] that follow the present ``weights`` [K], after an evaluation gave ``scores`` [K].

        Raises: InputError for scores that are not finite.
        """
        new = np.asarray(scores, np.float64)
        if not np.isfinite(new).all():
            raise InputError(f"influence scores: found {new.tolist()}, each must be a finite number")
        self.scores = new if self.scores is None else (1.0 - self.smoothing) * self.scores + self.smoothing * new
        goal = self.bounds.project(shares_of_scores(self.scores))
        return self.bounds.project((1.0 - self.rate) * np.asarray(weights, np.float64) + self.rate * goal)

    def state_dict(self) -> dict[str, Any]:
        return {"scores": None if self.scores is None else self.scores.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.scores = None if state["scores"] is None else np.array(state["scores"], np.float64)


@dataclass
class OnlineMixing:
    """Online data mixing: sources whose training loss is high are drawn more often.

    ``memory``: of the moving average of the rewards. ``updates`` counts from 0.

    Source: arXiv 2312.02406 (ODM), Algorithm 1: exploration e_t = min(1/K, sqrt(ln K / (K t))), policy
    (1 - K e_t) softmax(e_(t-1) R) + e_t, R_i <- memory R_i + (1 - memory) loss_i / p_i for the source drawn.
    Differs: a step here holds sequences of several sources, so loss_i is multiplied by source i's share of the
    sequences that were looked at: with one source in a step this is the paper's estimate, with the expected number
    of each it is the loss itself. And the policy is held within bounds.
    """

    bounds: Bounds
    sources: int
    memory: float = 0.9
    updates: int = 0
    rewards: F64 = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        self.bounds.check(self.sources)
        if not len(self.rewards):
            self.rewards = np.zeros(self.sources)

    def exploration(self, update: int) -> float:
        """Return e_t; e_0 is 1 / K."""
        if update < 1:
            return 1.0 / self.sources
        return min(1.0 / self.sources, math.sqrt(math.log(self.sources) / (self.sources * update)))

    def update(self, weights: Sequence[float], losses: ArrayLike, counts: ArrayLike) -> F64:
        """Return the weights [K] that follow ``weights`` [K], by which sequences were drawn.

        ``losses`` [K]: the mean loss of each source's sequences, ``counts`` [K] how many there were; with a count
        of 0 the loss is not read.
        """
        drawn, seen = np.asarray(counts, np.float64), np.asarray(losses, np.float64)
        self.updates += 1
        for i in np.flatnonzero(drawn).tolist():
            estimate = seen[i] * drawn[i] / drawn.sum() / max(weights[i], 1e-12)
            self.rewards[i] = self.memory * self.rewards[i] + (1.0 - self.memory) * estimate
        return self.bounds.project(self.policy())

    def policy(self) -> F64:
        """Return the policy [K] after so many updates; it sums to 1."""
        explore = self.exploration(self.updates)
        scaled = self.exploration(self.updates - 1) * self.rewards
        softmax = np.exp(scaled - scaled.max())
        return (1.0 - self.sources * explore) * softmax / softmax.sum() + explore

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "rewards": self.rewards.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.updates = int(state["updates"])
        self.rewards = np.array(state["rewards"], np.float64)
