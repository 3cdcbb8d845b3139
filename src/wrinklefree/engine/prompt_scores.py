"""How likely the tokens of a prompt are, each given those before it: computed piece by piece, beside other answers.

Only a piece's logits are ever held, so memory does not grow with prompt times vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.decoding import Decided, Decoder, Request, causal_piece_end
from wrinklefree.engine.native import load_native
from wrinklefree.engine.rows import Rows

PIECE_ROWS = 64  # whose logits are held at once


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Entry t is about token t given those before it; the first has none before it: NaN, and tokens -1.

    ``logprobs`` float32 [T]: of the prompt's tokens, natural logarithm; minus infinity for banned ones. ``best`` int32
    [T, K] and ``best_logprobs`` float32 [T, K]: the most likely tokens there, best first, of equal ones the lower id.
    """

    logprobs: NDArray[np.float32]
    best: NDArray[np.int32]
    best_logprobs: NDArray[np.float32]


class ScoredPrompt:
    """The decoder of an answer to a prompt that is scored: another one, but for the prompt.

    ``scores`` are whole when ``forwards`` is not 0.
    """

    def __init__(self, inner: Decoder, prompt: NDArray[np.int32], count: int, model: Any) -> None:
        """``inner`` must ask for the causal prompt int32 [T] and its last row first; ``count``: K of `PromptScores`.

        ``model``: the native one, whose threads do the work.
        """
        count, total = min(count, model.vocab_size), len(prompt)
        self.scores = PromptScores(
            np.full(total, np.nan, np.float32),
            np.full((total, count), -1, np.int32),
            np.full((total, count), np.nan, np.float32),
        )
        self.forwards = 0
        self._inner = inner
        self._prompt = prompt
        self._begin = 0
        self._model = model

    def request(self) -> Request:
        """Return the next piece of the prompt; then what the decoder wants."""
        if self._begin == len(self._prompt):
            return self._inner.request()
        end = causal_piece_end(len(self._prompt), self._begin, PIECE_ROWS)
        return Request(self._prompt[self._begin : end], "all", self._begin, choices=False)

    def take(self, rows: Rows) -> list[Decided]:
        """Score the rows of a piece; the decoder gets the prompt's last one, and all behind it."""
        begin, total = self._begin, len(self._prompt)
        if begin == total:
            return self._pass_on(rows)
        assert rows.logits is not None
        scored = min(begin + len(rows.logits), total - 1) - begin  # the last row is about no token of the prompt
        of = slice(begin + 1, begin + 1 + scored)
        found = self.scores
        load_native().score_rows(
            self._model, rows.logits[:scored], self._prompt[of], found.logprobs[of], found.best[of],
            found.best_logprobs[of],
        )  # fmt: skip
        self._begin = begin + len(rows.logits)
        if self._begin < total:
            return []
        self._inner.request()
        return self._pass_on(Rows(rows.tokens[-1:], rows.probability[-1:], rows.entropy[-1:], rows.logits[-1:]))

    def _pass_on(self, rows: Rows) -> list[Decided]:
        decided = self._inner.take(rows)
        self.forwards = self._inner.forwards
        return decided

    def waiting(self) -> list[Decided]:
        """Return the decoder's guesses."""
        return self._inner.waiting()
