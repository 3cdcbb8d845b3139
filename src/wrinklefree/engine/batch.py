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
from wrinklefree.engine.rows import NATIVE_WANTS, Rows, Want
from wrinklefree.errors import FormatError, InputError


@dataclass(frozen=True)
class BatchItem:
    """Tokens [T] of a sequence to compute, a prompt or a single one.

    ``want``: the rows whose logits or choices are asked for, by name or as rising indices of the tokens.
    ``start``: position of the first token; None is behind the last one of the sequence. Positions that it has already
    are computed anew, and those behind the item stay.
    ``block``: which keys the query at position p sees. 1: the causal rule, those up to p. B: its whole block, those
    before ``(p // B + 1) * B``, as far as the sequence has them behind this item.
    ``alone``: each row has the numbers, to the last bit, of a pass for its token alone.
    """

    slot: int
    tokens: Sequence[int] | NDArray[np.integer[Any]]
    want: Want | Sequence[int] = "last"
    start: int | None = None
    block: int = 1
    alone: bool = False


@dataclass(frozen=True)
class _Work:
    """An item as the extension takes it, and how many rows it asks for."""

    tokens: NDArray[np.int32]
    want: int | NDArray[np.int32]
    rows: int


class Batch:
    """Sequences of one engine, each in a slot of its own until `close`.

    A token's logits are the same, to the last bit, whatever else is in its step: prompts, blocks and single tokens may
    be mixed, sequences may come and go between steps. Meant for one thread; other users of the engine keep their slots.
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
        """Compute the tokens of all items; return their logits float32 [rows asked for, V] in the items' order.

        A sequence may have a second item where its first one ends. Raises: InputError, before anything is computed,
        for a slot that is not open or occurs twice in another way, a token outside the vocabulary, no tokens, a start
        behind the end of the sequence, a sequence beyond the context, or a block that does not fit into a pass.
        """
        work = [self._checked_item(item) for item in items]
        logits = _logits(sum(each.rows for each in work), self._engine.vocab_size)
        self._forward(items, work, logits if len(logits) else None, None)
        return np.split(logits, np.cumsum([each.rows for each in work])[:-1])

    def choose(self, items: Sequence[BatchItem], logits: bool = False) -> list[Rows]:
        """Compute the tokens of all items; return what their rows' softmax says, in the items' order.

        ``logits``: copy the logits out too. Probability and entropy are off by less than 2e-5, relative and absolute.
        Raises: as `step`, and FormatError when the weights give logits that are no numbers.
        """
        work = [self._checked_item(item) for item in items]
        count = sum(each.rows for each in work)
        found = (np.empty(count, np.int32), np.empty(count, np.float32), np.empty(count, np.float32))
        out = _logits(count, self._engine.vocab_size) if logits else None
        self._forward(items, work, out if count else None, found)
        if (found[0] < 0).any():
            raise FormatError("the weights give logits that are no numbers; export the model again")
        ends = np.cumsum([each.rows for each in work])[:-1]
        parts = [np.split(values, ends) for values in found]
        rows = [None] * len(work) if out is None else np.split(out, ends)
        return [Rows(*values) for values in zip(*parts, rows, strict=True)]

    def _forward(
        self,
        items: Sequence[BatchItem],
        work: Sequence[_Work],
        logits: NDArray[np.float32] | None,
        choices: tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]] | None,
    ) -> None:
        self._engine._model.forward_batch(
            [item.slot for item in items],
            [each.tokens for each in work],
            [each.want for each in work],
            logits,
            starts=[-1 if item.start is None else item.start for item in items],
            blocks=[item.block for item in items],
            alone=[item.alone for item in items],
            choices=choices,
        )

    def _checked_item(self, item: BatchItem) -> _Work:
        place = f"slot {self._checked(item.slot)}"
        ids = self._engine._checked_tokens(item.tokens, place)
        for name, value, least in (("start", item.start, 0), ("block", item.block, 1)):
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least
            ):
                raise InputError(f"{place}: {name}: found {value!r}, an integer from {least} on is needed")
        if isinstance(item.want, str):
            if item.want not in NATIVE_WANTS:
                raise InputError(f"want: found {item.want!r}, allowed are {', '.join(NATIVE_WANTS)} or indices")
            return _Work(ids, NATIVE_WANTS[item.want], {"none": 0, "last": 1, "all": len(ids)}[item.want])
        rows = np.asarray(item.want)
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise InputError(f"want: found {item.want!r}, allowed are {', '.join(NATIVE_WANTS)} or indices")
        if len(rows) and (rows.min() < 0 or rows.max() >= len(ids) or (np.diff(rows) <= 0).any()):
            raise InputError(f"want: found {list(item.want)}, allowed are rising indices of the {len(ids)} tokens")
        return _Work(ids, np.ascontiguousarray(rows, np.int32), len(rows))

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


def _logits(rows: int, width: int) -> NDArray[np.float32]:
    """Uninitialised [rows, width] that begins at a cache line: vectors astride two make many rows a fifth slower."""
    line = 64
    memory = np.empty(rows * width * 4 + line, np.uint8)
    start = -memory.ctypes.data % line
    return memory[start : start + rows * width * 4].view(np.float32).reshape(rows, width)
