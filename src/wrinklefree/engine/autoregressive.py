"""The decoder that decides one token after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding import Decided, Request
from wrinklefree.engine.rows import Rows


class TokenByToken:
    """Each pass appends the last token and samples the next from its row."""

    def __init__(
        self,
        prompt: NDArray[np.int32],
        sampler: Any,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        plain: bool = False,
    ) -> None:
        """``prompt`` int32 [T]; ``sampler``, ``constraint``: of this answer alone, the first a native one.

        ``plain``: nothing but the most likely token is asked for, which the pass itself finds, with all its threads;
        the sampler would search the rows one after the other.
        """
        self.forwards = 0
        self._sampler = sampler
        self._logprobs = -1 if logprobs is None else logprobs
        self._pending = prompt
        self._start = 0
        self._constraint = constraint
        self._plain = plain and constraint is None and logprobs is None
        sampler.accept(prompt, prompt=True)

    def request(self) -> Request:
        """Return the prompt, then the last token."""
        if self._plain:
            return Request(self._pending, "last", self._start, logits=False)
        # a constraint's mask is made when the row is there
        sampler = self._sampler if self._constraint is None else None
        return Request(self._pending, "last", self._start, choices=False, sampler=sampler, logprobs=self._logprobs)

    def take(self, rows: Rows) -> list[Decided]:
        """Sample from the last row."""
        if self._plain:
            return self._best(rows.best(0))
        assert rows.logits is not None
        constraint = self._constraint
        mask = None if constraint is None else constraint.mask()
        found = rows.sampled
        token, logprob, best = self._sampler.sample(rows.logits[0], self._logprobs, mask) if found is None else found
        if constraint is not None:
            constraint.accept(token)
        self.forwards += 1
        self._start += len(self._pending)
        self._pending = np.array([token], np.int32)
        self._sampler.accept(self._pending)
        last = constraint is not None and constraint.finished
        if self._logprobs < 0:
            return [Decided(self._start, token, last=last)]
        return [Decided(self._start, token, None, logprob, tuple(best), last)]

    def _best(self, token: int) -> list[Decided]:
        self.forwards += 1
        self._start += len(self._pending)
        self._pending = np.array([token], np.int32)
        return [Decided(self._start, token)]

    def waiting(self) -> list[Decided]:
        """Nothing is guessed ahead."""
        return []
