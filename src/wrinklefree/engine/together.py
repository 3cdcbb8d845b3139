"""Answers that advance together: they come, share passes, and leave."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.constraint import Constraint
from wrinklefree.engine.decoding import PIECE_TOKENS, Decided, Decoder, JointPasses, Turn
from wrinklefree.engine.decoding_settings import DecodingSettings
from wrinklefree.engine.generation import Answer, Generation, Step
from wrinklefree.engine.prefix_cache import PrefixCache
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.windows import MeasuredWindow, Window
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine.engine import Engine

Observer = Callable[[Turn, list[Decided]], None]  # a pass, and the guesses for positions that are still open


@dataclass(slots=True, eq=False)
class Seat:
    """The place of one answer: what was computed for it and not handed out, ``(step, moment)``; ``left`` at the end.

    ``failure``: why it ended without a last step; whoever asks for the next one gets it. ``cached``: positions of the
    prompt that were not computed again.
    """

    decoder: Decoder
    answer: Answer
    observer: Observer | None = None
    ready: deque[tuple[Step, float]] = field(default_factory=deque)
    left: bool = False
    failure: Exception | None = None
    entered: float = 0.0
    cached: int = 0
    slot: int | None = None
    held: ExitStack = field(default_factory=ExitStack)


class Together:
    """Answers of one engine in joint passes. For one thread; other threads may use the engine's other slots.

    `Engine.generate` has one for itself; `Engine.generate_together` shares one. Answers wait in the order of arrival
    where all slots are taken.
    """

    def __init__(
        self, engine: Engine, cache: int = 0, most: int = PIECE_TOKENS, most_beside: int = PIECE_TOKENS
    ) -> None:
        """Hold no slot yet; with ``cache`` at most so many, until `close`, and what they hold is used again.

        ``most``: tokens of prompts in a pass, ``most_beside``: in one that answers under way share.
        """
        self._engine = engine
        self._held = ExitStack()
        self._cache: PrefixCache | None = None
        if cache:
            slots = [self._held.enter_context(engine._slot()) for _ in range(min(cache, len(engine._free)))]
            self._cache = PrefixCache(engine._model, slots)
        self._passes = JointPasses(engine._model, self._cache, most, most_beside)
        self._queue: deque[Seat] = deque()
        self._greedy_window: Window | None = None
        self._seats: dict[int, Seat] = {}

    def add(
        self,
        prompt: Sequence[int] | NDArray[np.integer[Any]] | str,
        params: SamplingParams | None = None,
        decoding: DecodingSettings | None = None,
        observer: Observer | None = None,
        constraint: Constraint | None = None,
    ) -> Generation:
        """Return a further answer, which takes part from the next pass on; arguments and errors as `Engine.generate`.

        Either iterate over it, or call `run` until it is False and ask for its ``ready()`` steps in between.
        """
        generation = self.prepare(prompt, params, decoding, observer, constraint)
        self.start(generation)
        return generation

    def prepare(
        self,
        prompt: Sequence[int] | NDArray[np.integer[Any]] | str,
        params: SamplingParams | None = None,
        decoding: DecodingSettings | None = None,
        observer: Observer | None = None,
        constraint: Constraint | None = None,
    ) -> Generation:
        """Return an answer that takes no part yet: arguments are checked, `start` comes later; for any thread."""
        return self._engine._join(self, prompt, params, decoding, observer, constraint)

    def start(self, generation: Generation) -> None:
        """Let a prepared answer take part from the next pass on."""
        seat = generation._seat
        seat.entered = time.perf_counter()
        self._queue.append(seat)

    def greedy_window(self) -> Window:
        """Return the window of speculative answers that draw nothing.

        One for all: it learns from all, and follows their number. Raises: InputError as `Engine.row_costs`.
        """
        if self._greedy_window is None:
            self._greedy_window = MeasuredWindow(self._engine.row_costs(), company=lambda: len(self._passes))
        return self._greedy_window

    def leave(self, seat: Seat) -> None:
        """End an answer and free its slot; without effect on one that has left."""
        if seat.left:
            return
        seat.left = True
        if seat.slot is None:
            if seat.entered and seat in self._queue:  # one that was only prepared may be dropped by any thread
                self._queue.remove(seat)
            return
        self._passes.remove(seat.slot)
        del self._seats[seat.slot]
        seat.held.close()

    def run(self) -> bool:
        """Compute one pass for all answers; False when there is none left.

        An answer whose decoder or text fails leaves; whoever asks it for a step gets the failure.

        Raises: InputError when no answer has a slot and none is free; what the model raises.
        """
        self._admit()
        if not self._seats:
            return False
        try:
            turns = self._passes.run()
        except BaseException:  # also Ctrl-C
            self._dismiss()
            raise
        now = time.perf_counter()
        for slot, error in self._passes.failures:
            self._fail(self._seats[slot], error)
        for turn in turns:
            seat = self._seats[turn.slot]
            try:
                self._take(seat, turn, now)
            except Exception as error:
                self._fail(seat, error)
        return True

    def _take(self, seat: Seat, turn: Turn, now: float) -> None:
        if seat.decoder.forwards <= 1:
            seat.cached = min(self._passes.cached(turn.slot), seat.answer.first_position)
        if seat.observer is not None:
            seat.observer(turn, seat.decoder.waiting())
        if not turn.decided:
            return
        for step in seat.answer.take(turn.decided, seat.decoder.forwards):
            seat.ready.append((step, now))
        if seat.answer.finish_reason is not None:
            self.leave(seat)

    def _fail(self, seat: Seat, error: Exception) -> None:
        seat.failure = error
        self.leave(seat)

    def _admit(self) -> None:
        while self._queue:
            seat = self._queue[0]
            if self._cache is not None:
                if self._cache.free == 0:
                    if self._seats:
                        return
                    raise InputError("all slots were in use when this cache was made; make it when some are free")
                self._queue.popleft()
                self._seat(seat, self._cache)
                continue
            try:
                seat.slot = seat.held.enter_context(self._engine._slot())
            except InputError:
                if self._seats:
                    return  # the next to leave makes room
                raise
            self._queue.popleft()
            self._seats[seat.slot] = seat
            self._passes.add(seat.slot, seat.decoder)

    def _seat(self, seat: Seat, cache: PrefixCache) -> None:
        """Give a seat the slot that suits its prompt best."""
        try:
            request = seat.decoder.request()
        except Exception as error:
            self._fail(seat, error)
            return
        seat.slot, cached = cache.take(request)
        seat.held.callback(cache.release, seat.slot)
        self._seats[seat.slot] = seat
        self._passes.add(seat.slot, seat.decoder, request, cached)

    def close(self) -> None:
        """Let all answers leave and give back the slots of the cache."""
        for seat in [*self._seats.values(), *self._queue]:
            self.leave(seat)
        self._held.close()

    def _dismiss(self) -> None:
        """Let those leave whose decoder has failed."""
        for slot, seat in list(self._seats.items()):
            if slot not in self._passes:
                self.leave(seat)
