"""How many MASKs a self-speculative pass carries: a fixed number, or what promises the most tokens for the time.

Any rule that looks at the past alone leaves the output's distribution as it is: the window of a pass is chosen before
its proposals are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

AUTOMATIC_WINDOW = 8  # the most that is chosen automatically
_PRIOR = 0.6  # chance that the first draft is accepted, before anything is known
_DEEPER = 0.9  # what the next depth is expected to keep of it
_WELL_TRAINED = 0.89
_PRIOR_WEIGHT = 4.0  # observations that the prior counts for
_MEMORY = 0.98  # weight of an observation after each further one: about the last fifty count
_PROBES = (8, 64)  # passes without a draft between two tries: at first, at most


class Window(Protocol):
    """Chooses the MASKs of one answer's passes."""

    def choose(self, drafts: int) -> int:
        """Return how many MASKs the coming pass should have, which verifies ``drafts`` drafts."""
        ...

    def record(self, drafts: int, accepted: int) -> None:
        """Learn that the first ``accepted`` of a pass's drafts were accepted."""
        ...


class FixedWindow:
    """The same number in each pass; 0 is decoding token by token."""

    def __init__(self, size: int) -> None:
        """``size``: MASKs, at least 0."""
        self._size = size

    def choose(self, drafts: int) -> int:
        """Return the size."""
        return self._size

    def record(self, drafts: int, accepted: int) -> None:
        """Learn nothing."""


class MeasuredWindow:
    """What the costs of rows and the acceptance so far recommend.

    Where nothing is to be gained there are no MASKs, but for a try now and then: each refusal doubles the time to the
    next, and after a success the next pass tries again, as long as the acceptance may be high enough for a gain.
    """

    def __init__(
        self,
        costs: NDArray[np.float64],
        most: int = AUTOMATIC_WINDOW,
        company: Callable[[], int] | None = None,
    ) -> None:
        """``costs`` float64 [2 * most + 1 or more]: of passes of 1, 2, .. rows, as `Engine.row_costs` returns.

        ``company``: gives the answers that share the coming pass and this window, each of whose rows makes it dearer
        for all; None: there is one.
        """
        self._alone = self._costs = costs
        self._company = company
        self._answers = 1
        self._tried = np.zeros(most)
        self._accepted = np.zeros(most)
        self._windows, _ = plan(self.acceptance, costs)
        self._hope = self._hoped()
        self._pause, self._idle = _PROBES[0] if self._hope else _PROBES[1], 0

    @property
    def acceptance(self) -> NDArray[np.float64]:
        """Chances [most] that draft i is accepted where those before it were: recent frequencies and a prior."""
        chances = np.empty(len(self._tried))
        prior = _PRIOR
        for depth, (tried, accepted) in enumerate(zip(self._tried, self._accepted, strict=True)):
            chances[depth] = (accepted + _PRIOR_WEIGHT * prior) / (tried + _PRIOR_WEIGHT)
            prior = chances[depth] * _DEEPER
        return chances

    def choose(self, drafts: int) -> int:
        """Return the planned number; for a try 1, or while there is hope what would be planned with some luck."""
        if self._company is not None and (answers := max(1, self._company())) != self._answers:
            self._answers, self._costs = answers, shared_costs(self._alone, answers)
            self._windows, _ = plan(self.acceptance, self._costs)
            self._hope = self._hoped()
            self._pause = _PROBES[0] if self._hope else _PROBES[1]
        planned = int(self._windows[min(drafts, len(self._tried))])
        if planned or drafts:
            self._idle = 0
            return planned
        self._idle += 1
        if self._idle < self._pause * self._answers:
            return 0
        self._idle = 0
        return max(1, self._hope) if self._pause < _PROBES[1] else 1

    def record(self, drafts: int, accepted: int) -> None:
        """Count the drafts up to the first that was rejected; plan anew."""
        if drafts == 0:
            return
        tested = min(accepted + 1, drafts, len(self._tried))
        self._tried[:tested] = self._tried[:tested] * _MEMORY + 1
        self._accepted[:tested] = self._accepted[:tested] * _MEMORY + (np.arange(tested) < accepted)
        self._windows, _ = plan(self.acceptance, self._costs)
        if not self._windows[0]:
            self._hope = self._hoped()
            later = min(max(2 * self._pause, _PROBES[0]), _PROBES[1])
            self._pause = later if not accepted else 1 if self._hope else _PROBES[1]

    def _hoped(self) -> int:
        """The window beside the last token alone, if the acceptance was two standard errors above its estimate."""
        chances = self.acceptance
        errors = np.sqrt(chances * (1 - chances) / (self._tried + _PRIOR_WEIGHT))
        return int(plan(np.minimum(chances + 2 * errors, 0.99), self._costs)[0][0])


def shared_costs(costs: NDArray[np.float64], answers: int) -> NDArray[np.float64]:
    """Return the costs of 1, 2, .. rows of each of ``answers`` answers in a joint pass, where one row each costs 1.

    Behind the end of ``costs`` they go on as straight as in its second half.
    """
    rows = answers * np.arange(1, len(costs) + 1)
    half = len(costs) // 2
    slope = (costs[-1] - costs[half]) / max(1, len(costs) - 1 - half)
    found = np.interp(rows, np.arange(1, len(costs) + 1), costs) + slope * np.maximum(rows - len(costs), 0)
    return np.asarray(found / found[0], np.float64)


def promises_gain(costs: NDArray[np.float64]) -> bool:
    """Whether a well-trained model would be faster than token by token: its acceptance shows only in decoding.

    Source: arXiv 2604.11035, 1.80 tokens a pass with one MASK. That is 2 / (2 - a) for an acceptance of a = 0.89.
    """
    return plan(np.full(AUTOMATIC_WINDOW, _WELL_TRAINED), costs)[1] > 1.05


def plan(acceptance: NDArray[np.float64], costs: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
    """Return the best number of MASKs [W + 1] for a pass with 0 .. W drafts, and the tokens for the time of one row.

    ``acceptance`` [W]: chance, below 1, that draft i is accepted where those before it were; ``costs`` [2 W + 1 or
    more]: of 1, 2, .. rows, where one row costs 1. A pass with k drafts and m MASKs gives 1 + s_1 + .. + s_k tokens
    with s_i = a_1 .. a_i, costs c(1 + k + m), and leads to a pass with m drafts with chance s_k, else to one with none.
    The rate g and the values h of the best choice solve

        h(k) = max_m [ 1 + s_1 + .. + s_k - g c(1 + k + m) + s_k h(m) + (1 - s_k) h(0) ],    h(0) = 0.

    Source: Howard, Dynamic Programming and Markov Processes (1960), chapter 4 (policy iteration for average reward);
    here with durations, as Jewell, Markov-renewal programming (1963).
    """
    states = np.arange(len(acceptance) + 1)
    kept = np.concatenate([[1.0], np.cumprod(acceptance)])
    tokens = np.cumsum(kept)
    cost = costs[np.add.outer(states, states)]
    windows = np.zeros(len(states), np.int64)
    while True:
        system = np.eye(len(states))
        system[states, windows] -= kept
        system[:, 0] = cost[states, windows]  # h(0) is 0, and the rate takes its place
        solution = np.linalg.solve(system, tokens)
        rate, solution[0] = float(solution[0]), 0.0
        gain = np.outer(kept, solution) - rate * cost
        best = gain.argmax(axis=1)
        # only a real improvement: rounding must not send two equal choices round in circles
        better = gain[states, best] > gain[states, windows] + 1e-9
        if not better.any():
            return windows, rate
        windows = np.where(better, best, windows)
