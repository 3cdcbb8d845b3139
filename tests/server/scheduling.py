"""A scheduler without HTTP: an engine, an event loop, and answers asked for by token ids."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import numpy as np

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.work import Ticket, Work

AR = DecodingSettings(mode="ar")


def prompt(length: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return token ids int32 [length]."""
    return np.random.default_rng(seed + 1000 * length).integers(2, 200, length).astype(np.int32)


def endless(count: int) -> SamplingParams:
    """Return parameters of a greedy answer of exactly so many tokens."""
    return SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True, seed=0)


def work(tokens: Any, count: int, client: str = "", decoding: DecodingSettings = AR) -> Work:
    """Return the order of an answer of exactly ``count`` tokens."""
    return Work(np.asarray(tokens, np.int32), endless(count), decoding, client)


@asynccontextmanager
async def scheduling(engine: Engine, **settings: Any) -> AsyncIterator[Scheduler]:
    """Run a scheduler on the engine; cut what is left at the end; all slots must be free then."""
    scheduler = Scheduler(engine, ServerSettings("toy", **{"slots": engine.slots, **settings}))
    scheduler.start()
    try:
        yield scheduler
    finally:
        await scheduler.stop(0)
    assert len(engine._free) == engine.slots, "a slot is still held"


@contextmanager
def held(scheduler: Scheduler) -> Iterator[Callable[[int], None]]:
    """Let no pass begin inside, but as many as the given function is told."""
    run, passes = scheduler._together.run, threading.Semaphore(0)

    def wait_and_run() -> bool:
        assert passes.acquire(timeout=30)
        return run()

    def allow(count: int) -> None:
        for _ in range(count):
            passes.release()

    scheduler._together.run = wait_and_run  # type: ignore[method-assign]
    try:
        yield allow
    finally:
        scheduler._together.run = run  # type: ignore[method-assign]
        allow(1)


def submit_all(scheduler: Scheduler, *works: Work) -> list[Ticket]:
    """Submit several at a moment: the engine's thread sees all or none of them."""
    with scheduler._wake:
        return [scheduler.submit(each) for each in works]


async def tokens_of(ticket: Ticket) -> list[int]:
    """Return the tokens of a whole answer."""
    return [step.token async for event in ticket for step in event.steps]


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Wait for something that another thread will bring about."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, f"{what} did not come about"
        await asyncio.sleep(0.001)
