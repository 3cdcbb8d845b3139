"""The embedding of a text: the mean of its tokens' hidden states, computed in joint passes beside answers.

It is an answer like any other to those that share passes: one whose only token means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.decoding import PIECE_TOKENS, Decided, Request, causal_piece_end
from wrinklefree.engine.generation import Answer, Generation
from wrinklefree.engine.rows import Rows
from wrinklefree.engine.sampling import greedy
from wrinklefree.engine.together import Seat, Together
from wrinklefree.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Sequence


class MeanOfStates:
    """The decoder that adds up the states behind the last norm, read causally, piece by piece.

    ``embedding`` float32 [D]: their mean, not normalised; None before the last piece.
    """

    def __init__(self, prompt: NDArray[np.int32]) -> None:
        """``prompt`` int32 [T]."""
        self.forwards = 0
        self.embedding: NDArray[np.float32] | None = None
        self._prompt = prompt
        self._begin = 0
        self._sum: NDArray[np.float64] = np.zeros((), np.float64)

    def request(self) -> Request:
        """Return the next piece."""
        end = causal_piece_end(len(self._prompt), self._begin, PIECE_TOKENS)
        return Request(self._prompt[self._begin : end], "all", self._begin, logits=False, choices=False, hidden=True)

    def take(self, rows: Rows) -> list[Decided]:
        """Add the states; behind the last ones the token that ends the answer, which nobody reads."""
        assert rows.hidden is not None
        self._sum = self._sum + rows.hidden.sum(axis=0, dtype=np.float64)
        self._begin += len(rows.hidden)
        if self._begin < len(self._prompt):
            return []
        self.forwards += 1
        mean = (self._sum / len(self._prompt)).astype(np.float32)
        if not np.isfinite(mean).all():
            raise FormatError("hidden states: found NaN or infinity; the model's weights overflow float32, train or "
                              "export it again")  # fmt: skip
        self.embedding = mean
        return [Decided(len(self._prompt), 0)]

    def waiting(self) -> list[Decided]:
        """Nothing is guessed ahead."""
        return []


def prepare_embedding(together: Together, prompt: Sequence[int] | NDArray[np.integer[Any]]) -> Generation:
    """Return the embedding of a prompt as an answer that takes no part yet: `Together.start` it.

    Its ``embedding`` is set when its one step is there. Raises: InputError for a prompt as `Engine.generate`.
    """
    ids = together._engine._checked_tokens(prompt, "input")
    params = greedy(1)
    seat = Seat(MeanOfStates(ids), Answer(len(ids), 1, params, frozenset(), None))
    return Generation("embedding", len(ids), params, together, seat)


def add_embedding(together: Together, prompt: Sequence[int] | NDArray[np.integer[Any]]) -> Generation:
    """Return the same as an answer that takes part from the next pass on."""
    found = prepare_embedding(together, prompt)
    together.start(found)
    return found


def normalised(embedding: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return an embedding [D] of length 1; zeros stay."""
    length = float(np.sqrt(np.sum(np.square(embedding, dtype=np.float64))))
    return embedding if length == 0 else (embedding / length).astype(np.float32)
