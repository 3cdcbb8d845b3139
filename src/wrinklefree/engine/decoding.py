"""One loop for all ways of decoding: decoders say what they need computed, joint passes compute it.

A decoder is the state of one answer. Its `request` names the tokens whose states it needs next; its `take` receives
them and says what became certain. It knows nothing of passes, other answers, text, stop strings or limits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.rows import Rows, Want


@dataclass(frozen=True, slots=True)
class Request:
    """What a decoder needs computed next, in its slot.

    ``tokens`` int32 [T] at the positions from ``start`` on; what the slot held there is replaced. ``want``: the rows to
    give to `Decoder.take`, as indices in rising order or in words. ``block``: 1 for causal attention, B for attention
    by blocks of B (a query sees its block and all before). ``alone``: attention exactly as if each row were decoded
    singly. ``truncate``: first forget the slot's tokens from this position on. ``logits``, ``choices``: what `Rows`
    must hold (without ``choices`` its tokens, probabilities and entropies are not set).

    A request longer than a pass (a prompt) is computed in pieces; `Decoder.take` is called after the last.
    """

    tokens: NDArray[np.int32]
    want: Want | tuple[int, ...]
    start: int
    block: int = 1
    alone: bool = False
    truncate: int | None = None
    logits: bool = True
    choices: bool = True


@dataclass(frozen=True, slots=True)
class Decided:
    """A token and the position (counted from the beginning of the prompt) it was decided for.

    ``confidence``: its probability in the unfiltered softmax, None where nobody asked. ``logprob`` and ``best`` as in
    `engine.Step`.
    """

    position: int
    token: int
    confidence: float | None = None
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()


class Decoder(Protocol):
    """The state of one answer.

    ``forwards``: requests taken so far. The prompt's own prefill counts only as part of the request that it is merged
    with: the first one.
    """

    forwards: int

    def request(self) -> Request:
        """Return what must be computed next; the same again until `take` was called."""
        ...

    def take(self, rows: Rows) -> list[Decided]:
        """Receive the wanted rows of the last request; return what is decided now, by position; may be empty.

        The arrays are valid until the next pass; copy what must be kept.
        """
        ...

    def waiting(self) -> list[Decided]:
        """Return the present guesses for positions that are still open, by position: for traces, may be empty."""
        ...
