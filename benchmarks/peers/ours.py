"""Our side of a visit, in a process of its own: ``python -m benchmarks.peers.ours JSON``; the only file that knows our
engine's interface. Prints a JSON object with the seconds of every repeat of every test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.plan import BenchTest
from benchmarks.peers.shapes import PEER_SHAPES

from wrinklefree.engine import Engine
from wrinklefree.engine.native import load_native
from wrinklefree.version import __version__

READ_BYTES = 512 << 20
READ_SECONDS = 0.5
DECODE_START = 1  # llama-bench decodes from an empty cache; a prompt of one token is the nearest to it


def version() -> str:
    """Return the package's version, and the commit where it runs from a checkout."""
    root = Path(__file__).parents[2]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__} ({commit})"


def measure_limits(threads: int) -> dict[str, Any]:
    """Return the processor's name and the GB/s at which ``threads`` threads read memory, best pass."""
    kernels = load_native().kernels
    return {"cpu": kernels.cpu_name(), "read_gb_s": kernels.read_gb_per_second(threads, READ_BYTES, READ_SECONDS)}


def load_engine(shape: str, model: Mapping[str, Any], threads: int, context: int) -> Engine:
    """Return the engine of a model's packed directory, or one with random weights, the head and options it names."""
    if model["directory"]:
        return Engine.load(model["directory"], threads=threads, context=context)
    config = {**PEER_SHAPES[shape], "max_position_embeddings": max(8192, context)}
    return Engine.random(config, threads=threads, context=context, head=model["head"], **model["options"])


def measure(engine: Engine, test: BenchTest, repeats: int) -> list[float]:
    """Return the seconds of each repeat, after one that does not count."""

    def once() -> float:
        if test.decodes:
            return engine.decode_seconds(test.tokens, DECODE_START)
        return engine.prefill_seconds(test.tokens)

    once()
    return [once() for _ in range(repeats)]


def visit(
    shape: str, model: Mapping[str, Any], threads: int, tests: Sequence[BenchTest], repeats: int
) -> dict[str, Any]:
    """Return what one visit measured."""
    context = max(test.tokens for test in tests) + DECODE_START + 1
    engine = load_engine(shape, model, threads, context)
    return {
        "version": version(),
        "bytes_per_token": engine.bytes_per_token,
        "seconds": {test.name: measure(engine, test, repeats) for test in tests},
    }


def main() -> None:
    """Do what the JSON object on the command line asks for."""
    wanted = json.loads(sys.argv[1])
    if wanted.get("limits"):
        answer = measure_limits(wanted["threads"])
    else:
        tests = [BenchTest(name) for name in wanted["tests"]]
        answer = visit(wanted["shape"], wanted["model"], wanted["threads"], tests, wanted["repeats"])
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
