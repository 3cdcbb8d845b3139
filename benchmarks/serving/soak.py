"""Memory and descriptors of a server over many requests: whole, broken off, refused, wrong.

    python -m benchmarks.serving.soak --model DIR [--requests 10000] --out results/NAME

Nothing here is timed; it may run beside other work.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.serving.answers import streamed
from benchmarks.serving.client import Exchange, ask, payload
from benchmarks.serving.load import PATH, prepared
from benchmarks.serving.requests import Workload
from benchmarks.serving.servers import (
    ServerError,
    ServerProcess,
    Sizes,
    end_servers_with_us,
    free_port,
    our_command,
    running,
)

from wrinklefree.artifact.files import json_bytes, write_bytes

TOKENS = 8
SAMPLES = 40  # of memory, over a run


def soak(server: ServerProcess, requests: int, streams: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Send ``requests`` requests with ``streams`` at a time; return memory and descriptors after every part of them.

    Of 20 requests 16 are read to the end (every other behind a shared prefix), 2 are left while they stream, 1 is wrong
    and 1 is not JSON.
    """
    samples: list[dict[str, float]] = []
    fates: Counter[str] = Counter()
    numbers = itertools.count()
    part = max(1, requests // SAMPLES)
    while (sent := sum(fates.values())) < requests:
        fates.update(asyncio.run(_part(server, numbers, min(part, requests - sent), streams)))
        samples.append({
            "requests": sum(fates.values()), "memory_bytes": server.memory_bytes(),
            "descriptors": server.descriptors(), "cpu_seconds": server.cpu_seconds(),
        })  # fmt: skip
        last = samples[-1]
        say(f"{last['requests']} requests: {last['memory_bytes'] / 2**20:.1f} MiB, {last['descriptors']} descriptors")
    return {"samples": samples, "fates": dict(fates), **growth(samples)}


async def _part(server: ServerProcess, numbers: Iterator[int], count: int, streams: int) -> Counter[str]:
    fates: Counter[str] = Counter()
    work = iter(list(itertools.islice(numbers, count)))

    async def stream() -> None:
        for number in work:
            fates[await _request(server, number)] += 1

    await asyncio.gather(*(stream() for _ in range(streams)))
    return fates


async def _request(server: ServerProcess, number: int) -> str:
    address, exchange = server.address, Exchange(number)
    kind = number % 20
    workload = Workload(("distinct", "shared")[number % 2], TOKENS)
    if kind == 18:
        await ask(address, payload(address, PATH, {"messages": [], "max_tokens": -1}), exchange)
        return "refused" if exchange.status == 400 else f"wrong request: status {exchange.status} {exchange.error}"
    if kind == 19:
        data = payload(address, PATH, {})
        await ask(address, data[:-1] + b"!", exchange)
        return "refused" if exchange.status == 400 else f"no JSON: status {exchange.status} {exchange.error}"
    if kind in (7, 13):
        task = asyncio.create_task(ask(address, prepared(address, Workload("distinct", 200), number), exchange))
        while len(exchange.arrivals) < 3 and not task.done():
            await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return "left"
    await ask(address, prepared(address, workload, number), exchange)
    faults = streamed(exchange, TOKENS).faults
    return "whole" if not faults else f"fault: {faults[0]}"


def growth(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return how memory grows over the second half: bytes a request, by a straight line, and first against last."""
    half = samples[len(samples) // 2 :]
    requests = np.array([sample["requests"] for sample in half])
    memory = np.array([sample["memory_bytes"] for sample in half])
    slope = float(np.polyfit(requests, memory, 1)[0]) if len(half) > 1 else 0.0
    return {
        "bytes_per_request": slope,
        "half_bytes": float(memory[0]),
        "last_bytes": float(memory[-1]),
        "peak_bytes": max(sample["memory_bytes"] for sample in samples),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print and write the record; 1 when an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json")
    given = parser.parse_args(arguments)
    port = free_port()
    sizes = Sizes(given.threads, given.slots, given.context)
    try:
        with running(our_command(given.model, sizes, port), port) as server:
            record = soak(server, given.requests, given.streams, lambda text: print(text, file=sys.stderr, flush=True))
    except ServerError as error:
        sys.exit(f"benchmarks.serving.soak: {error}")
    write_bytes(given.out.with_suffix(".json"), json_bytes(record))
    print({key: value for key, value in record.items() if key != "samples"})
    return 0 if set(record["fates"]) <= {"whole", "refused", "left"} else 1


if __name__ == "__main__":
    end_servers_with_us()
    sys.exit(main())
