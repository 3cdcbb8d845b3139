"""What the HTTP side asks of the engine's thread, and what comes back: plain values, no FastAPI."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine import DecodingSettings, Generation, SamplingParams, Step, Together
from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding import Decided, Turn
from wrinklefree.engine.prompt_scores import PromptScores


@dataclass(frozen=True)
class Work:
    """One answer to compute. ``prompt`` int32 [T].

    ``client``: who asks, for a fair order of clients (a key's name or an address). ``watch``: report every pass too,
    with the guesses for open positions. ``constraint``: what the text must keep to; not to be used for a second answer.
    ``prepare``: makes what shall be computed where that is no answer (an embedding), not yet taking part; it is called
    in `Scheduler.submit`.
    """

    prompt: NDArray[np.int32]
    params: SamplingParams
    decoding: DecodingSettings
    client: str = ""
    watch: bool = False
    constraint: Constraint | None = None
    prepare: Callable[[Together], Generation] | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """News of one answer: the steps since the last event, and the passes when they are watched.

    With the first steps come the prompt's ``scores``, where ``params.prompt_logprobs`` asks for them, or the prompt's
    ``embedding`` float32 [D], not normalised, where that is computed.
    """

    steps: tuple[Step, ...] = ()
    passes: tuple[tuple[Turn, tuple[Decided, ...]], ...] = ()
    scores: PromptScores | None = None
    embedding: NDArray[np.float32] | None = None

    @classmethod
    def joined(cls, events: Sequence[Event]) -> Event:
        """Return consecutive events as one."""
        return cls(
            tuple(step for event in events for step in event.steps),
            tuple(one for event in events for one in event.passes),
            next((event.scores for event in events if event.scores is not None), None),
            next((event.embedding for event in events if event.embedding is not None), None),
        )


class Ticket(AsyncIterator[Event]):
    """An answer under way, in the hands of the event loop: iterate over its events, or cancel it.

    The iteration ends behind the event whose last step has a finish reason. What came since the last event was taken is
    one event. Raises: ApiError when the answer was broken off (a deadline, the server's stop, a failure).

    ``prompt_tokens`` and ``seed`` are known at once, ``mode`` too; ``cached_tokens`` of the prompt were not computed
    again: known with the first event. ``forwards``: passes so far. ``unread_since``: `time.monotonic` of the oldest
    event that nobody has taken, None when there is none.
    """

    def __init__(self, prompt_tokens: int, seed: int, cancel: Callable[[], None]) -> None:
        """``cancel`` ends the answer; it may be called at any time, from the event loop, and more than once."""
        self.prompt_tokens = prompt_tokens
        self.seed = seed
        self.cancel = cancel
        self.mode: str | None = None
        self.cached_tokens = 0
        self.forwards = 0
        self.unread_since: float | None = None
        self._events: list[Event] = []
        self._ended = False
        self._failure: BaseException | None = None
        self._news = asyncio.Event()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        events, self._events = self._events, []
        self.unread_since = None
        return events[0] if len(events) == 1 else Event.joined(events)

    def give(self, found: Event | BaseException | None) -> None:
        """Hand over an event, the error that ends the answer, or None behind the last (on the loop's thread)."""
        if isinstance(found, Event):
            self._events.append(found)
            if self.unread_since is None:
                self.unread_since = time.monotonic()
        else:
            self._ended = True
            self._failure = found
        self._news.set()
