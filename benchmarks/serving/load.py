"""Two ways to load a server: so many streams that each ask again when they are answered, or arrivals at a rate."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from time import perf_counter

from benchmarks.serving.client import Address, Exchange, ask, payload
from benchmarks.serving.requests import Workload

PATH = "/v1/chat/completions"


def prepared(address: Address, workload: Workload, number: int) -> bytes:
    """Return the bytes of a request of a workload."""
    return payload(address, PATH, workload.body(number))


async def closed(
    address: Address,
    workload: Workload,
    streams: int,
    seconds: float,
    numbers: Iterator[int],
    at_least: int = 0,
    prefetched: int = 512,
) -> list[Exchange]:
    """Keep ``streams`` requests under way for ``seconds`` and until ``at_least`` were sent; return all, each whole.

    Requests are put together before the clock starts, as far as ``prefetched`` reaches.
    """
    ready = iter([(number, prepared(address, workload, number)) for number in itertools.islice(numbers, prefetched)])
    found: list[Exchange] = []
    sent = 0
    end = perf_counter() + seconds

    async def stream() -> None:
        nonlocal sent
        while perf_counter() < end or sent < at_least:
            sent += 1
            following = next(ready, None)
            if following is None:
                number = next(numbers)
                following = (number, prepared(address, workload, number))
            found.append(await ask(address, following[1], Exchange(following[0])))

    await asyncio.gather(*(stream() for _ in range(streams)))
    return found


async def arrivals(
    address: Address, workload: Workload, per_second: float, seconds: float, numbers: Iterator[int], seed: int = 0
) -> list[asyncio.Task[Exchange]]:
    """Send requests at random moments (Poisson) for ``seconds``, however long answers take; return those under way."""
    chance = random.Random(seed)
    count = max(1, round(per_second * seconds))
    moments = sorted(chance.uniform(0.0, seconds) for _ in range(count))
    ready = [(number, prepared(address, workload, number)) for number in itertools.islice(numbers, count)]
    start = perf_counter()
    tasks = []
    for moment, (number, data) in zip(moments, ready, strict=True):
        if (wait := start + moment - perf_counter()) > 0:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(ask(address, data, Exchange(number))))
    return tasks
