"""What a phase cost: processor time of the server, of the load itself, and of everybody else on the machine."""

from __future__ import annotations

import os
import time
from time import perf_counter

from benchmarks.peers.watch import busy_seconds
from benchmarks.serving.servers import ServerProcess


class Meter:
    """Started when it is made; `read` gives shares of one processor since then."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._start = self._now()

    def _now(self) -> tuple[float, float, float, float]:
        return perf_counter(), self._server.cpu_seconds(), time.process_time(), busy_seconds()

    def read(self) -> dict[str, float]:
        """Return seconds of ``wall``, and processors used: by the ``server``, the ``load``, and by ``others``.

        ``others`` is what is left of the machine's busy time, 0 where the system does not tell; in processors, too.
        """
        wall, server, load, busy = (after - before for before, after in zip(self._start, self._now(), strict=True))
        wall = max(wall, 1e-9)
        return {
            "wall": wall,
            "server": server / wall,
            "load": load / wall,
            "others": max(0.0, busy - server - load) / wall,
        }


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0))
