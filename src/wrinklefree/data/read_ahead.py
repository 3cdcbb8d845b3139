"""Batches built ahead of their use, in threads: nobody can tell from what comes out, only from when.

Threads and not processes: packing is short work on arrays that all threads share, and training spends its time
outside the interpreter lock. Nothing is shared but the finished batches. A batch is a function of its place and the
mixture, so one that was built under weights that have changed since is dropped and built again; those that lie wholly
before the change are right and stay.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError

M = TypeVar("M")
# First sequence, number of sequences over all processes, rank, number of processes.
Place = tuple[int, int, int, int]


class ReadAhead(Generic[M]):
    """Builds up to ``ahead`` batches in ``workers`` threads, at the distance that the last two asked for had."""

    def __init__(self, build: Callable[[M, Place], TokenBatch], workers: int, ahead: int) -> None:
        """``build`` must depend on nothing but its arguments, the mixture and the place.

        Raises: InputError when a number is negative, or no batch is to be built ahead.
        """
        if workers < 0 or ahead < 1:
            raise InputError(f"data: found {workers} workers and {ahead} batches ahead, needed are 0 or more and 1")
        self._build, self._workers, self._ahead = build, workers, ahead
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: dict[Place, Future[TokenBatch]] = {}
        self._last: Place | None = None
        self.hits = 0

    def batch(self, mixture: M, place: Place) -> TokenBatch:
        """Return the batch at ``place``, and start on those that will follow if the stride stays what it was."""
        if not self._workers:
            return self._build(mixture, place)
        ready = self._waiting.pop(place, None)
        stride = place[0] - self._last[0] if self._last and self._last[1:] == place[1:] else 0
        self._last = place
        for passed in [other for other in self._waiting if other[0] <= place[0] or other[1:] != place[1:]]:
            self._waiting.pop(passed).cancel()
        if stride > 0:
            for number in range(1, self._ahead + 1):
                self._start(mixture, (place[0] + number * stride, *place[1:]))
        if ready is None:
            return self._build(mixture, place)
        self.hits += 1
        return ready.result()

    def drop_from(self, position: int) -> None:
        """Forget every batch that holds sequence ``position`` or a later one."""
        for place in [place for place in self._waiting if place[0] + place[1] > position]:
            self._waiting.pop(place).cancel()

    def close(self) -> None:
        """End the threads."""
        self.drop_from(0)
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _start(self, mixture: M, place: Place) -> None:
        if place not in self._waiting:
            self._pool = self._pool or ThreadPoolExecutor(self._workers, "read-ahead")
            self._waiting[place] = self._pool.submit(self._build, mixture, place)
