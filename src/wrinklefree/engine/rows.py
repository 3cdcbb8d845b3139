"""What a pass gives for the rows that were asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Want = Literal["none", "last", "all"]
NATIVE_WANTS: dict[str, int] = {"none": 0, "last": 1, "all": 2}


@dataclass(frozen=True, slots=True)
class Rows:
    """The R wanted rows of one item, in the order of their positions.

    ``tokens`` int32 [R]: the most probable token of each (of equal ones the lower id). ``probability`` float32 [R] and
    ``entropy`` float32 [R] (nats) of the softmax without banned tokens (MASK; pad unless it ends a text). ``logits``
    float32 [R, V] where they were asked for, banned tokens at minus infinity.
    """

    tokens: NDArray[np.int32]
    probability: NDArray[np.float32]
    entropy: NDArray[np.float32]
    logits: NDArray[np.float32] | None
