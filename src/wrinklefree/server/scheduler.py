"""One thread computes for all requests; the event loop hands work in and takes events out."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from dataclasses import dataclass, field, replace

from wrinklefree.engine import Engine, Generation, Together
from wrinklefree.engine.decoding import Decided, Turn
from wrinklefree.errors import InputError
from wrinklefree.server.errors import draining, from_input_error, overloaded
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.work import Event, Ticket, Work


@dataclass(eq=False)
class _Running:
    """An answer as the engine's thread sees it."""

    work: Work
    ticket: Ticket
    generation: Generation | None = None
    cancelled: bool = False
    passes: list[tuple[Turn, tuple[Decided, ...]]] = field(default_factory=list)

    def watch(self, turn: Turn, waiting: list[Decided]) -> None:
        self.passes.append((turn, tuple(waiting)))


class Scheduler:
    """Answers of one engine for many clients. `start` and `submit` belong to the event loop's thread."""

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        """``engine`` must have at least ``settings.slots`` slots; nobody else may use it."""
        self.engine = engine
        self.settings = settings
        self._together = Together(engine)
        self._wake = threading.Condition()
        self._inbox: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._numbers = itertools.count(1)

    def start(self) -> None:
        """Begin to compute; call it in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Answers that have no slot yet."""
        return max(0, len(self._inbox) + len(self._running) - self.settings.slots)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is taken in."""
        return self._stopping

    def submit(self, work: Work) -> Ticket:
        """Take an answer in. Raises: ApiError when the queue is full or the server is stopping; InputError."""
        if self._stopping:
            raise draining()
        if self.waiting >= self.settings.queue:
            raise overloaded(self.waiting, 1)
        seeded = work.params.with_seed()
        assert seeded.seed is not None
        job = _Running(
            replace(work, params=seeded),
            Ticket(len(work.prompt), seeded.seed, lambda: self._cancel(job)),
        )
        with self._wake:
            self._inbox.append(job)
            self._wake.notify()
        return job.ticket

    async def stop(self) -> None:
        """Take nothing more, break off what runs, end the thread."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _cancel(self, job: _Running) -> None:
        with self._wake:
            job.cancelled = True
            self._wake.notify()

    def _work(self) -> None:
        while not self._stopping:
            self._admit()
            if not self._running:
                with self._wake:
                    self._wake.wait_for(lambda: self._inbox or self._stopping)
                continue
            self._together.run()
            for job in list(self._running):
                self._report(job)
        for job in self._running:
            self._give(job, draining())

    def _admit(self) -> None:
        with self._wake:
            arrived, self._inbox = list(self._inbox), deque()
        for job in arrived:
            work = job.work
            try:
                job.generation = self._together.add(
                    work.prompt, work.params, work.decoding, job.watch if work.watch else None, work.constraint
                )
                job.ticket.mode = job.generation.mode
                self._running.append(job)
            except InputError as error:
                self._give(job, from_input_error(error))

    def _report(self, job: _Running) -> None:
        assert job.generation is not None
        if job.cancelled:
            job.generation.close()
            self._running.remove(job)
            return
        steps = tuple(job.generation.ready())
        if steps or job.passes:
            job.ticket.forwards = job.generation.forwards
            self._give(job, Event(steps, tuple(job.passes)))
            job.passes.clear()
        if job.generation.finish_reason is not None:
            self._running.remove(job)
            self._give(job, None)

    def _give(self, job: _Running, found: Event | BaseException | None) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(job.ticket.give, found)
