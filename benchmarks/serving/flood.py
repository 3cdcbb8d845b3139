"""A flood at three times what a server can answer: running streams, refusals, goodput, and the first quiet request."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any

from benchmarks.serving.answers import piece_times, streamed
from benchmarks.serving.client import Exchange, ask
from benchmarks.serving.load import arrivals, closed, prepared
from benchmarks.serving.measure import one, quantiles
from benchmarks.serving.requests import Workload
from benchmarks.serving.servers import ServerProcess

SHORT_TOKENS = 16
TIMES = 3.0
RESERVED_TOKENS = 256  # of a context, for the prompt of a long stream
GIVE_UP_SECONDS = 120.0
TURNS = 4  # floods, with quiet between them: long streams become slower by themselves as they grow


def flood(
    server: ServerProcess, slots: int, context: int, seconds: float, fields: dict[str, Any], numbers: Iterator[int]
) -> dict[str, Any]:
    """Return what floods of ``seconds`` do to a server: first beside long streams in all slots, then alone.

    Where nothing is refused, waiting for all answers takes about three times as long again.
    """
    short = Workload("distinct", SHORT_TOKENS, fields=fields)
    long = Workload("distinct", context - RESERVED_TOKENS, fields=fields)
    before = one(server, short, next(numbers))
    memory_before = server.memory_bytes()
    capacity = _capacity(server, short, slots, seconds, numbers)
    rate = TIMES * capacity["requests_per_second"]
    # A long stream must not end while it is observed: quiet and flood in turns.
    lasts = long.max_tokens * slots / capacity["tokens_per_second"]
    streams = asyncio.run(_beside_streams(server, short, long, slots, rate, min(seconds, lasts / 3), numbers))
    goodput = asyncio.run(_goodput(server, short, rate, seconds, numbers))
    after = one(server, short, next(numbers))
    return {
        "capacity": capacity, "per_second": rate, "streams": streams, "goodput": goodput,
        "first_ms_before": 1e3 * before.first_seconds, "first_ms_after": 1e3 * after.first_seconds,
        "memory_before": memory_before, "memory_after": server.memory_bytes(),
        "faults": [*before.faults, *after.faults],
    }  # fmt: skip


def _capacity(
    server: ServerProcess, short: Workload, slots: int, seconds: float, numbers: Iterator[int]
) -> dict[str, float]:
    exchanges = asyncio.run(closed(server.address, short, slots, seconds, numbers, at_least=slots))
    wall = max(each.ended for each in exchanges) - min(each.sent for each in exchanges)
    whole = sum(not streamed(each, short.max_tokens).faults for each in exchanges)
    return {"requests_per_second": whole / wall, "tokens_per_second": whole * short.max_tokens / wall}


async def _beside_streams(
    server: ServerProcess, short: Workload, long: Workload, slots: int, rate: float, seconds: float,
    numbers: Iterator[int],
) -> dict[str, Any]:  # fmt: skip
    """Return the speed of long streams in a flood against before and after it, and how refusals went."""
    running = [Exchange(number) for number in itertools.islice(numbers, slots)]
    data = [prepared(server.address, long, each.number) for each in running]
    tasks = [
        asyncio.create_task(ask(server.address, each, exchange, GIVE_UP_SECONDS))
        for each, exchange in zip(data, running, strict=True)
    ]
    while not all(len(each.arrivals) > 1 for each in running) and not any(task.done() for task in tasks):
        await asyncio.sleep(0.01)
    moments, flooded = [perf_counter()], []
    for _ in range(TURNS):
        await asyncio.sleep(seconds / TURNS)
        moments.append(perf_counter())
        flooded += await arrivals(server.address, short, rate, seconds / TURNS, numbers)
        moments.append(perf_counter())
    await asyncio.sleep(seconds / TURNS)
    moments.append(perf_counter())
    early = sum(task.done() for task in tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    times = [moment for each in running for moment in piece_times(each)]
    speeds = [
        sum(start <= moment < end for moment in times) / (end - start) for start, end in itertools.pairwise(moments)
    ]
    kept = [2 * speeds[at] / max(1e-9, speeds[at - 1] + speeds[at + 1]) for at in range(1, len(speeds), 2)]
    return {
        "slots": slots, "ended_early": early, "seconds": seconds, "pieces_per_second": speeds,
        "kept": sum(kept) / len(kept), **_fates(await asyncio.gather(*flooded), short),
    }  # fmt: skip


async def _goodput(
    server: ServerProcess, short: Workload, rate: float, seconds: float, numbers: Iterator[int]
) -> dict[str, Any]:
    begin = perf_counter()
    exchanges = await asyncio.gather(*await arrivals(server.address, short, rate, seconds, numbers))
    inside = sum(each.status == 200 and not each.error and each.ended <= begin + seconds for each in exchanges)
    wall = max(each.ended for each in exchanges) - begin
    return {"requests_per_second": inside / seconds, "wall": wall, **_fates(exchanges, short)}


def _fates(exchanges: Sequence[Exchange], short: Workload) -> dict[str, Any]:
    """Return how many requests were refused, answered and lost, and how long either took."""
    refused = [each for each in exchanges if each.status == 429]
    answers = [streamed(each, short.max_tokens) for each in exchanges if each.status != 429]
    whole = [answer for answer in answers if not answer.faults]
    faults = [fault for answer in answers for fault in answer.faults]
    without_header = sum(b"retry-after:" not in each.arrivals[0][1].lower() for each in refused)
    return {
        "requests": len(exchanges), "refused": len(refused), "answered": len(whole), "lost": len(faults),
        "faults": sorted(set(faults))[:5], "refusals_without_retry_after": without_header,
        "refused_ms": quantiles([each.seconds for each in refused]),
        "first_ms": quantiles([answer.first_seconds for answer in whole]),
        "whole_ms": quantiles([answer.ended - answer.sent for answer in whole]),
    }  # fmt: skip
