"""Measure `wf serve` under load, beside llama-server with the same model, in turns on the same machine.

    python -m benchmarks.serving.run --model DIR --gguf FILE --llama-server PATH --minutes 20 --out results/NAME

Rounds of phases: each number of streams with each kind of request, every contestant in turn while the other server is
stopped (SIGSTOP); then a flood. Writes OUT.json after every phase and OUT.md at the end. Nothing else should run on the
machine. The exit code is 1 when an answer of ours was lost, malformed, or not that of the same request alone.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.serving import report
from benchmarks.serving.flood import flood
from benchmarks.serving.load import closed
from benchmarks.serving.machine import processors
from benchmarks.serving.measure import Alone, phase
from benchmarks.serving.requests import Workload
from benchmarks.serving.servers import (
    ServerError,
    ServerProcess,
    Sizes,
    end_servers_with_us,
    free_port,
    llama_command,
    our_command,
    running,
)

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.engine.native import load_native
from wrinklefree.version import __version__

OURS = "wrinklefree"
LLAMA = "llama-server"
CHECK_SHARE = 0.4  # of a phase's seconds, for asking its requests again alone
FLOOD_SHARE = 0.15  # of all minutes
FLOODS_SECONDS = 9.0  # that a flood takes for each of its seconds


@dataclass(frozen=True)
class Contestant:
    """A server and the fields that its requests have besides."""

    name: str
    server: ServerProcess
    alone: Alone
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether wrong answers fail the run."""
        return self.name.startswith(OURS)


def main(arguments: list[str] | None = None) -> int:
    """Run everything and return the exit code."""
    options = _options(arguments)
    try:
        return measure(options, lambda text: print(text, file=sys.stderr, flush=True))
    except ServerError as error:
        sys.exit(f"benchmarks.serving: {error}")


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Start the servers, run all phases and floods, write the report."""
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(options.threads or processors(), options.slots, options.context)
    record: dict[str, Any] = {"machine": _machine(sizes), "sizes": asdict(sizes), "phases": [], "floods": []}
    with ExitStack() as stack:
        contestants = _start(stack, options, sizes, record)
        count = options.rounds * len(options.workloads) * len(options.streams) * len(contestants)
        seconds = options.seconds or options.minutes * 60 * (1 - FLOOD_SHARE) / (count * (1 + CHECK_SHARE))
        record["phase_seconds"], record["rounds"], record["tokens"] = seconds, options.rounds, options.tokens
        record["temperature"] = options.temperature
        say(f"{count} phases of {seconds:.1f} s and floods; servers: {', '.join(c.name for c in contestants)}")
        numbers = itertools.count(1000)
        for contestant in _one_of_each_server(contestants):
            _alone_on_the_machine(contestant, contestants)
            _warm_up(contestant, sizes.slots, numbers)
        for turn, workload, streams, contestant in _order(options, contestants):
            _alone_on_the_machine(contestant, contestants)
            requests = Workload(workload, options.tokens, fields=contestant.fields, temperature=options.temperature)
            found = _phase(contestant, requests, streams, seconds, numbers)
            record["phases"].append({"round": turn, **found})
            say(report.line(record["phases"][-1]))
            _write(options.out, record)
        for contestant in [] if options.no_flood else _one_of_each_server(contestants):
            _alone_on_the_machine(contestant, contestants)
            part = options.minutes * 60 * FLOOD_SHARE / (2 * FLOODS_SECONDS)
            found = flood(
                contestant.server, sizes.slots, sizes.context, options.seconds or part, contestant.fields, numbers
            )
            record["floods"].append({"contestant": contestant.name, **found})
            say(f"flood of {contestant.name}: streams keep {found['streams']['kept']:.0%}")
            _write(options.out, record)
    _write(options.out, record)
    text = report.markdown(record)
    write_bytes(options.out.with_suffix(".md"), text.encode())
    print(text)
    return 1 if report.wrong(record) else 0


def _warm_up(contestant: Contestant, slots: int, numbers: Iterator[int]) -> None:
    """Let every slot be used, those that only keep prompts too: the first use of one's memory takes time."""
    short = Workload("distinct", 2, fields=contestant.fields)
    asyncio.run(closed(contestant.server.address, short, slots, 0.0, numbers, at_least=3 * slots))


def _order(
    options: argparse.Namespace, contestants: Sequence[Contestant]
) -> Iterator[tuple[int, str, int, Contestant]]:
    """Yield round, workload, streams and contestant; each round another contestant is the first."""
    for turn in range(options.rounds):
        first = turn % len(contestants)
        for workload in options.workloads:
            for streams in options.streams:
                for contestant in [*contestants[first:], *contestants[:first]]:
                    yield turn, workload, streams, contestant


def _phase(
    contestant: Contestant, workload: Workload, streams: int, seconds: float, numbers: Iterator[int]
) -> dict[str, Any]:
    figures, answers = phase(contestant.server, workload, streams, seconds, numbers)
    checked = contestant.alone.compare(workload, answers, CHECK_SHARE * seconds)
    return {
        "contestant": contestant.name, "ours": contestant.ours, "workload": workload.name, **figures,
        "checked": checked, "memory_bytes": contestant.server.memory_bytes(),
    }  # fmt: skip


def _alone_on_the_machine(contestant: Contestant, contestants: Sequence[Contestant]) -> None:
    for other in contestants:
        if other.server is not contestant.server:
            other.server.pause()
    contestant.server.resume()


def _one_of_each_server(contestants: Sequence[Contestant]) -> list[Contestant]:
    found: dict[int, Contestant] = {}
    for contestant in contestants:
        found.setdefault(id(contestant.server), contestant)
    return list(found.values())


def _start(stack: ExitStack, options: argparse.Namespace, sizes: Sizes, record: dict[str, Any]) -> list[Contestant]:
    contestants = []
    port = free_port()
    server = stack.enter_context(running(our_command(options.model, sizes, port, options.serve_flag), port))
    alone = Alone(server)
    record["commands"] = {OURS: server.command}
    record["files"] = {OURS: _bytes_of(Path(options.model))}
    contestants = [Contestant(f"{OURS} {mode}", server, alone, {"mode": mode}) for mode in options.modes]
    if options.llama_server:
        port = free_port()
        server = stack.enter_context(
            running(llama_command(options.llama_server, options.gguf, sizes, port, options.llama_flag), port)
        )
        record["commands"][LLAMA] = server.command
        record["files"][LLAMA] = Path(options.gguf).stat().st_size
        contestants.append(Contestant(LLAMA, server, Alone(server)))
    return contestants


def _bytes_of(model: Path) -> int:
    return sum(file.stat().st_size for file in model.glob("*.safetensors")) if model.is_dir() else model.stat().st_size


def _machine(sizes: Sizes) -> dict[str, Any]:
    return {
        "cpu": load_native().kernels.cpu_name(), "processors": processors(), "threads": sizes.threads,
        "python": platform.python_version(), "version": __version__,
    }  # fmt: skip


def _write(out: Path, record: dict[str, Any]) -> None:
    write_bytes(out.with_suffix(".json"), json_bytes(record))


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="what wf serve is given")
    parser.add_argument("--gguf", help="the same model for llama-server")
    parser.add_argument("--llama-server", help="its program; without it only our server is measured")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything, about")
    parser.add_argument("--seconds", type=float, help="of a phase, instead of --minutes")
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.json and OUT.md")
    parser.add_argument("--modes", nargs="+", default=["ar", "speculative"], help="of our server")
    parser.add_argument("--workloads", nargs="+", default=["distinct", "shared"], choices=["distinct", "shared"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="above 0: drawn, with a seed of its own each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of both servers; default: all processors")
    parser.add_argument("--slots", type=int, default=16, help="answers computed at a time, of both servers")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a slot, of both servers")
    parser.add_argument("--no-flood", action="store_true")
    parser.add_argument("--serve-flag", action="append", default=[], help="a further argument of wf serve; repeatable")
    parser.add_argument("--llama-flag", action="append", default=[], help="of llama-server; repeatable")
    options = parser.parse_args(arguments)
    if bool(options.gguf) != bool(options.llama_server):
        parser.error("--gguf and --llama-server go together")
    return options


if __name__ == "__main__":
    end_servers_with_us()
    sys.exit(main())
