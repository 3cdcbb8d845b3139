"""Several sequences that advance together: the weights are read once for all tokens of a step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.engine import Engine
from wrinklefree.engine.rows import Want
from wrinklefree.errors import InputError

_WANTS: dict[Want, int] = {"none": 0, "last": 1, "all": 2}


@dataclass(frozen=True)
class BatchItem:
    """Tokens [T] to append to a sequence, a prompt or a single one; ``want``: the rows of logits to compute."""

    slot: int
    tokens: Sequence[int] | NDArray[np.integer[Any]]
    want: Want = "last"


class Batch:
    """Sequences of one engine, each in a slot of its own until `close`.

    A token's logits are the same, to the last bit, whatever else is in its step (with a head in float16: up to
    rounding): prompts and single tokens may be mixed, sequences may come and go between steps. Meant for one thread;
    other users of the engine keep their slots.
    """

    def __init__(self, engine: Engine) -> None:
        """Hold no slot yet."""
        self._engine = engine
        self._held: dict[int, ExitStack] = {}

    def open(self) -> int:
        """Return the slot of a new, empty sequence. Raises: InputError when all slots are in use."""
        stack = ExitStack()
        slot = stack.enter_context(self._engine._slot())
        self._held[slot] = stack
        return slot

    def close(self, slot: int) -> None:
        """Give a slot back. Raises: InputError for a slot that is not open."""
        self._checked(slot)
        self._held.pop(slot).close()

    def length(self, slot: int) -> int:
        """Return the number of tokens in a sequence."""
        return int(self._engine._model.length(self._checked(slot)))

    def truncate(self, slot: int, length: int) -> None:
        """Forget the tokens of a sequence from ``length`` on. Raises: InputError when it has fewer."""
        self._engine._model.truncate(self._checked(slot), length)

    def step(self, items: Sequence[BatchItem]) -> list[NDArray[np.float32]]:
        """Append the tokens of all items; return their logits float32 [rows asked for, V] in the items' order.

        Raises: InputError, before anything is computed, for a slot that is not open or occurs twice, a token outside
        the vocabulary, no tokens, or a sequence beyond the context.
        """
        tokens = [self._engine._checked_tokens(item.tokens, f"slot {self._checked(item.slot)}") for item in items]
        for item in items:
            if item.want not in _WANTS:
                raise InputError(f"want: found {item.want!r}, allowed are {', '.join(_WANTS)}")
        rows = [{"none": 0, "last": 1, "all": len(ids)}[item.want] for item, ids in zip(items, tokens, strict=True)]
        logits = np.empty((sum(rows), self._engine.vocab_size), np.float32)
        wants = [_WANTS[item.want] for item in items]
        out = logits if len(logits) else None
        self._engine._model.forward_batch([item.slot for item in items], tokens, wants, out)
        return np.split(logits, np.cumsum(rows)[:-1])

    def __enter__(self) -> Self:
        """Return the batch; leaving the block closes all sequences."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give all slots back."""
        for slot in list(self._held):
            self.close(slot)

    def _checked(self, slot: int) -> int:
        if slot not in self._held:
            raise InputError(f"slot: found {slot}, open are {sorted(self._held) or 'none'}; `open` gives one")
        return slot
