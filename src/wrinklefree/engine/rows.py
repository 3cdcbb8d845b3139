"""What a pass gives for the rows that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import FormatError

Want = Literal["none", "last", "all"]
NATIVE_WANTS: dict[str, int] = {"none": 0, "last": 1, "all": 2}


@dataclass(frozen=True, slots=True)
class Rows:
    """The R wanted rows of one item, in the order of their positions.

    ``tokens`` int32 [R]: the most probable token of each (of equal ones the lower id). ``probability`` float32 [R] and
    ``entropy`` float32 [R] (nats) of the softmax without banned tokens (MASK; pad unless it ends a text). ``logits``
    float32 [R, V] where they were asked for, banned tokens at minus infinity. ``hidden`` float32 [R, D] for a request
    of hidden states, which has none of the others. ``sampled``: what the request's sampler made of the last row, as
    `Sampler.sample` returns it; None where there is none, where it was not asked beside others, or where it refuses.
    """

    tokens: NDArray[np.int32]
    probability: NDArray[np.float32]
    entropy: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    hidden: NDArray[np.float32] | None = None
    sampled: tuple[int, float, list[tuple[int, float]]] | None = None

    def best(self, row: int) -> int:
        """Return the most probable token of a row. Raises: FormatError when its logits are no numbers."""
        token = int(self.tokens[row])
        if token < 0:
            raise FormatError("logits: found NaN or infinity; the model's weights overflow float32, train or export "
                              "it again")  # fmt: skip
        return token

    @classmethod
    def of_hidden(cls, hidden: NDArray[np.float32]) -> Rows:
        """Return rows that are hidden states [R, D] alone."""
        none = np.empty(0, np.float32)
        return cls(np.empty(0, np.int32), none, none, None, hidden)
