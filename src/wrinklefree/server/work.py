"""What the HTTP side asks of the engine's thread, and what comes back: plain values, no FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine import DecodingSettings, SamplingParams, Step
from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding import Decided, Turn


@dataclass(frozen=True)
class Work:
    """One answer to compute. ``prompt`` int32 [T].

    ``client``: who asks, for a fair order of clients (a key's name or an address). ``watch``: report every pass too,
    with the guesses for open positions. ``constraint``: what the text must keep to; not to be used for a second answer.
    """

    prompt: NDArray[np.int32]
    params: SamplingParams
    decoding: DecodingSettings
    client: str = ""
    watch: bool = False
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """News of one answer: the steps since the last event, and the passes when they are watched."""

    steps: tuple[Step, ...] = ()
    passes: tuple[tuple[Turn, tuple[Decided, ...]], ...] = ()


@dataclass(eq=False)
class Ticket(AsyncIterator[Event]):
    """An answer under way, in the hands of the event loop: iterate over its events, or cancel it.

    The iteration ends behind the event whose last step has a finish reason. Raises: ApiError when the answer was broken
    off (a deadline, the server's stop, a failure).

    ``prompt_tokens`` and ``seed`` are known at once; ``mode`` once it was taken up; ``cached_tokens`` of the prompt
    were not computed again.
    """

    prompt_tokens: int
    seed: int
    cancel: Callable[[], None]
    mode: str | None = None
    cached_tokens: int = 0
    forwards: int = 0
    _events: asyncio.Queue[Event | BaseException | None] = field(default_factory=asyncio.Queue)

    async def __anext__(self) -> Event:
        found = await self._events.get()
        if found is None:
            raise StopAsyncIteration
        if isinstance(found, BaseException):
            raise found
        return found

    def give(self, found: Event | BaseException | None) -> None:
        """Hand over an event, the error that ends the answer, or None behind the last (on the loop's thread)."""
        self._events.put_nowait(found)
