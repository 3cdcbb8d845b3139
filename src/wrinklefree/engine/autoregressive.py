"""The decoder that decides one token after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.decoding import Decided, Request
from wrinklefree.engine.rows import Rows


class TokenByToken:
    """Each pass appends the last token and samples the next from its row."""

    def __init__(self, prompt: NDArray[np.int32], sampler: Any, logprobs: int | None = None) -> None:
        """``prompt`` int32 [T]; ``sampler``: a native one, of this answer alone."""
        self.forwards = 0
        self._sampler = sampler
        self._logprobs = -1 if logprobs is None else logprobs
        self._pending = prompt
        self._start = 0
        sampler.accept(prompt)

    def request(self) -> Request:
        """Return the prompt, then the last token."""
        return Request(self._pending, "last", self._start, choices=False)

    def take(self, rows: Rows) -> list[Decided]:
        """Sample from the last row."""
        assert rows.logits is not None
        token, logprob, best = self._sampler.sample(rows.logits[0], self._logprobs)
        self.forwards += 1
        self._start += len(self._pending)
        self._pending = np.array([token], np.int32)
        self._sampler.accept(self._pending)
        if self._logprobs < 0:
            return [Decided(self._start, token)]
        return [Decided(self._start, token, None, logprob, tuple(best))]

    def waiting(self) -> list[Decided]:
        """Nothing is guessed ahead."""
        return []
