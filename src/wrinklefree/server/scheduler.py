"""One thread computes for all requests; the event loop hands work in and takes events out."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wrinklefree.engine import Engine, Generation, Together
from wrinklefree.engine.decoding import Decided, Turn
from wrinklefree.errors import InputError
from wrinklefree.server.admission import FairQueue
from wrinklefree.server.errors import ApiError, draining, failed, not_read, overloaded, timed_out, waited_too_long
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.statistics import Statistics
from wrinklefree.server.work import Event, Ticket, Work

_log = logging.getLogger("wrinklefree.server")
_MOST_FAILED_PASSES = 3  # one after the other, before the engine counts as broken

News = tuple[Ticket, Event | BaseException | None]


@dataclass(eq=False)
class _Job:
    """An answer that was taken in. Times as `time.monotonic`."""

    work: Work
    generation: Generation
    ticket: Ticket
    arrived: float
    started: float | None = None  # has a slot since
    last_token: float | None = None
    done: bool = False  # ended, or cancelled: a cancellation has nothing to do any more
    passes: list[tuple[Turn, tuple[Decided, ...]]] = field(default_factory=list)


class Scheduler:
    """Answers of one engine for many clients. `start`, `submit`, `drain` and `stop` belong to the event loop's thread.

    Attributes: ``statistics``; ``failure``: what ended the engine's thread, None while all is well. ``on_failure`` is
    called in the event loop with it: a server that cannot compute should end.
    """

    def __init__(self, engine: Engine, settings: ServerSettings) -> None:
        """``engine`` must have ``settings.slots`` free slots; up to ``settings.cached_prompts`` more are used too."""
        self.engine = engine
        self.settings = settings
        self.statistics = Statistics()
        self.failure: BaseException | None = None
        self.on_failure: Callable[[BaseException], None] | None = None
        self._together: Together
        self._wake = threading.Condition()  # guards the queue, the number of running answers and the orders below
        self._queue: FairQueue[_Job] = FairQueue()
        self._running: list[_Job] = []
        self._cancelled: list[_Job] = []
        self._ends_at: float | None = None  # draining: what runs then is broken off
        self._failed_passes = 0
        self._news: list[News] = []
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to compute; call it in the event loop. What is measured once is measured here."""
        self._loop = asyncio.get_running_loop()
        if "dlm" in (self.engine.config.get("wrinklefree") or {}):
            self.engine.row_costs()  # needs a free slot
        self._open()
        self._thread.start()

    def _open(self) -> None:
        settings = self.settings
        slots = settings.slots + settings.cached_prompts
        self._together = Together(self.engine, slots, settings.prefill_tokens, settings.prefill_tokens_beside)

    @property
    def waiting(self) -> int:
        """Answers that have no slot yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Answers that have a slot."""
        return len(self._running)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is taken in."""
        return self._ends_at is not None

    @property
    def ready(self) -> bool:
        """Whether requests are taken: not once the server is stopping, or can no longer compute."""
        return not self.stopping and self.failure is None

    def submit(self, work: Work) -> Ticket:
        """Take an answer in. Raises: ApiError when the queue is full or the server is stopping; InputError."""
        self.check_room()
        self.statistics.received += 1
        job = self._job(work)
        with self._wake:
            if self.failure is not None:
                raise failed()
            self._queue.push(work.client, job)
            self._wake.notify()
        return job.ticket

    def check_room(self) -> None:
        """Refuse what `submit` would refuse, before anything is spent on it. Raises: ApiError as `submit`."""
        statistics, settings = self.statistics, self.settings
        waiting = len(self._queue) + len(self._running) - settings.slots
        if not self.stopping and waiting < settings.queue:
            return
        statistics.received += 1
        if self.stopping:
            statistics.refused["stopping"] += 1
            raise draining()
        statistics.refused["queue_full"] += 1
        raise overloaded(waiting, statistics.retry_after(waiting + 1, settings.slots))

    def _job(self, work: Work) -> _Job:
        work = replace(work, params=work.params.with_seed())
        passes: list[tuple[Turn, tuple[Decided, ...]]] = []
        observer = (lambda turn, waiting: passes.append((turn, tuple(waiting)))) if work.watch else None
        if work.prepare is not None:
            generation = work.prepare(self._together)
        else:
            generation = self._together.prepare(work.prompt, work.params, work.decoding, observer, work.constraint)
        ticket = Ticket(len(work.prompt), generation.seed, lambda: self._cancel(job))
        ticket.mode = generation.mode
        job = _Job(work, generation, ticket, time.monotonic(), passes=passes)
        return job

    def drain(self, seconds: float | None = None) -> None:
        """Take nothing more in; answers under way may go on for so long (None: ``settings.drain_seconds``)."""
        ends_at = time.monotonic() + (self.settings.drain_seconds if seconds is None else seconds)
        with self._wake:
            self._ends_at = ends_at if self._ends_at is None else min(self._ends_at, ends_at)
            self._wake.notify()

    async def stop(self, seconds: float | None = None) -> None:
        """Do as `drain`, and return when the thread has ended."""
        self.drain(seconds)
        await asyncio.to_thread(self._thread.join)

    def _cancel(self, job: _Job) -> None:
        with self._wake:
            if job.done:
                return
            job.done = True
            if self._queue.discard(job.work.client, job):
                self.statistics.ended["cancelled_waiting"] += 1
                job.ticket.cancel = _nothing
                job.ticket.give(None)
            else:
                self._cancelled.append(job)
            self._wake.notify()

    # What follows runs in the engine's thread.

    def _work(self) -> None:
        try:
            while self._wait():
                now = time.monotonic()
                self._end_some(now)
                self._tell()
                self._admit(now)
                self._compute()
                self._tell()
        except BaseException as error:  # whatever it is, nobody may wait for an answer for ever
            _log.exception("the engine's thread has failed")
            self._break(error)
        self._together.close()
        self._tell()

    def _wait(self) -> bool:
        """Wait for something to do; False when the thread shall end."""
        with self._wake:
            self._wake.wait_for(lambda: self._queue or self._running or self.stopping)
            return bool(self._queue or self._running)

    def _end_some(self, now: float) -> None:
        """End answers whose client has left or does not read, and those whose time is up."""
        settings = self.settings
        with self._wake:
            cancelled, self._cancelled = self._cancelled, []
            late = [job for job in self._queue if now - job.arrived > settings.queue_seconds]
            if self._ends_at is not None and now >= self._ends_at:
                late = list(self._queue)
            for job in late:
                self._queue.discard(job.work.client, job)
        for job in late:
            stopped = self._ends_at is not None and now >= self._ends_at
            retry_after = self.statistics.retry_after(self.waiting + 1, settings.slots)
            error = draining() if stopped else waited_too_long(settings.queue_seconds, retry_after)
            self._end(job, "stopping" if stopped else "timeout", error)
        for job in cancelled:
            if job in self._running:
                self._end(job, "cancelled_decoding" if job.last_token is not None else "cancelled_prefill", None)
        for job in list(self._running):
            unread = job.ticket.unread_since
            if self._ends_at is not None and now >= self._ends_at:
                self._end(job, "stopping", draining())
            elif now - job.arrived > settings.request_seconds:
                self._end(job, "timeout", timed_out(settings.request_seconds))
            elif unread is not None and now - unread > settings.reader_seconds:
                self._end(job, "slow_reader", not_read(settings.reader_seconds))

    def _admit(self, now: float) -> None:
        while True:
            with self._wake:
                if not self._queue or len(self._running) >= self.settings.slots:
                    return
                job = self._queue.pop()
                self._running.append(job)
            job.started = now
            self.statistics.queue_seconds.add(now - job.arrived)
            self._together.start(job.generation)

    def _compute(self) -> None:
        if not self._running:
            return
        begun = time.monotonic()
        try:
            self._together.run()
            self._failed_passes = 0
        except Exception as error:
            # Whose fault it was cannot be said: all that shared the pass are given up, the next ones may work.
            _log.exception("a pass of %d answers has failed", len(self._running))
            self._failed_passes += 1
            if self._failed_passes >= _MOST_FAILED_PASSES:
                raise
            for job in list(self._running):
                self._end(job, "failed", _reason(error))
            return
        now = time.monotonic()
        self.statistics.passes += 1
        self.statistics.pass_seconds += now - begun
        for job in list(self._running):
            self._report(job, now)

    def _report(self, job: _Job, now: float) -> None:
        generation = job.generation
        steps = tuple(generation.ready())
        if steps or job.passes:
            first = bool(steps) and not job.ticket.forwards
            scores, embedding = (generation.prompt_scores, generation.embedding) if first else (None, None)
            job.ticket.forwards = generation.forwards
            job.ticket.cached_tokens = generation.cached_tokens
            self._news.append((job.ticket, Event(steps, tuple(job.passes), scores, embedding)))
            job.passes.clear()
        if steps:
            self._count(job, len(steps), now)
        if generation.finish_reason is not None:
            self._end(job, generation.finish_reason if job.work.prepare is None else "embedded", None)
        elif generation.failure is not None:
            _log.error("an answer has failed", exc_info=generation.failure)
            self._end(job, "failed", _reason(generation.failure))

    def _count(self, job: _Job, steps: int, now: float) -> None:
        statistics = self.statistics
        if job.last_token is None:
            statistics.prompt_tokens += job.ticket.prompt_tokens
        if job.work.prepare is not None:  # no answer: its step is no token that anybody reads
            return
        statistics.generated_tokens += steps
        if job.last_token is None:
            statistics.first_token_seconds.add(now - job.arrived)
            statistics.cached_tokens += job.generation.cached_tokens
        else:
            statistics.between_tokens_seconds.add((now - job.last_token) / steps, steps)
        job.last_token = now

    def _end(self, job: _Job, how: str, error: BaseException | None) -> None:
        """Free the slot of an answer and tell its ticket that nothing more comes, or why."""
        job.generation.close()
        with self._wake:
            job.done = True
            job.ticket.cancel = _nothing  # ends the circle through which a ticket would keep all that was computed
            if job in self._running:
                self._running.remove(job)
        now = time.monotonic()
        statistics = self.statistics
        statistics.ended[how] += 1
        if job.started is not None:
            statistics.served(now - job.started)
            statistics.request_seconds.add(now - job.arrived)
            forwards = job.generation.forwards
            statistics.forwards += forwards
            if forwards and job.work.prepare is None:
                statistics.tokens_per_forward.add(len(job.generation.tokens) / forwards)
        self._news.append((job.ticket, error))

    def _break(self, error: BaseException) -> None:
        """Give all up: the thread ends."""
        self.failure = error
        with self._wake:
            jobs = [*self._running, *self._queue]
            self._running, self._queue = [], FairQueue()
        self._news += [(job.ticket, failed()) for job in jobs]
        self.statistics.ended["failed"] += len(jobs)
        if self.on_failure is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self.on_failure, error)

    def _tell(self) -> None:
        """Hand the news over, of all answers at once: waking the loop is what costs."""
        if not self._news:
            return
        assert self._loop is not None
        news, self._news = self._news, []
        try:
            self._loop.call_soon_threadsafe(_give, news)
        except RuntimeError:  # the loop is closed, nobody listens
            _log.warning("the event loop has ended before its answers")


def _nothing() -> None:
    pass


def _give(news: list[News]) -> None:
    for ticket, found in news:
        ticket.give(found)


def _reason(error: Exception) -> ApiError:
    """Return what the client is told: our own words, or that the log knows more."""
    if isinstance(error, ApiError):
        return error
    return failed(str(error) if isinstance(error, InputError) else None)
