"""Run the visits of a plan and collect seconds: of peers through llama-bench, of ours through `ours.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.gguf_size import tensor_bytes
from benchmarks.peers.plan import BenchTest, Contestant, Plan, Visit, visits

ROOT = Path(__file__).parents[2]
WATCH = (sys.executable, str(Path(__file__).with_name("watch.py")))


class VisitError(Exception):
    """A process of an engine failed; the text says which and how."""


def llama_bench_command(peer: Contestant, visit: Visit, repeats: int) -> list[str]:
    """Return the call of a peer's llama-bench for one visit."""
    prompts = [str(test.tokens) for test in visit.tests if not test.decodes] or ["0"]
    steps = [str(test.tokens) for test in visit.tests if test.decodes] or ["0"]
    counts = ["-p", ",".join(prompts), "-n", ",".join(steps), "-r", str(repeats), "-t", str(visit.threads)]
    return [peer.program, "-m", peer.models[visit.shape].file, *counts, "-o", "json", *peer.flags]


def parse_llama_bench(text: str) -> tuple[str, dict[str, list[float]]]:
    """Return the commit and the seconds of every repeat by test, from the output of ``llama-bench -o json``.

    Raises: VisitError when there is no result in it.
    """
    try:
        # Some versions print notes around the list.
        entries = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
    except ValueError as error:
        raise VisitError(f"llama-bench printed no JSON ({error})") from error
    seconds = {}
    for entry in entries:
        name = f"pp{entry['n_prompt']}" if entry["n_prompt"] else f"tg{entry['n_gen']}"
        seconds[name] = [nanoseconds * 1e-9 for nanoseconds in entry["samples_ns"]]
    return str(entries[0].get("build_commit", "")) if entries else "", seconds


def _call(command: Sequence[str], launcher: Sequence[str]) -> tuple[str, float]:
    """Return what a command printed and the share of the machine other processes took. Raises: VisitError."""
    done = subprocess.run([*launcher, *WATCH, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise VisitError(f"{' '.join([*launcher, *WATCH])}: {done.stderr.strip()[-500:]}")
    seen = json.loads(done.stdout)
    if seen["status"] != 0:
        raise VisitError(f"{command[0]} ended with status {seen['status']}: {seen['error'].strip()[-500:]}")
    return seen["output"], seen["others"]


def _our_command(wanted: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-m", "benchmarks.peers.ours", json.dumps(wanted)]


def _run_visit(visit: Visit, plan: Plan) -> dict[str, Any]:
    """Return version, bytes a token, seconds by test, and the others' share. Raises: VisitError."""
    contestant, model = visit.contestant, visit.contestant.models[visit.shape]
    if contestant.ours:
        wanted = {"shape": visit.shape, "threads": visit.threads, "repeats": plan.repeats, "model": asdict(model)}
        wanted["tests"] = [test.name for test in visit.tests]
        output, others = _call(_our_command(wanted), plan.launcher)
        return {**json.loads(output), "others": others}
    output, others = _call(llama_bench_command(contestant, visit, plan.repeats), plan.launcher)
    commit, seconds = parse_llama_bench(output)
    size = tensor_bytes(Path(model.file))
    return {"version": contestant.version or commit, "bytes_per_token": size, "seconds": seconds, "others": others}


def run_plan(plan: Plan, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all visits and return the record; ``out`` holds it, too, after every visit.

    A visit that fails is told and noted under "failures"; the others go on.
    """
    record: dict[str, Any] = {"machine": {}, "plan": _describe(plan), "samples": [], "failures": []}
    order = list(visits(plan))
    for index, visit in enumerate(order):
        name = f"{visit.contestant.name}, {visit.shape}, {visit.threads} threads, {_names(visit.tests)}"
        try:
            before = order[index - 1] if index else None
            if before is None or (before.round, before.threads) != (visit.round, visit.threads):
                _measure_machine(record["machine"], visit.threads, plan)
            result = _run_visit(visit, plan)
        except VisitError as error:
            record["failures"].append({"visit": name, "round": visit.round, "error": str(error)})
            say(f"[{index + 1}/{len(order)}] {name}: FAILED: {error}")
            continue
        keys = {"engine": visit.contestant.name, "shape": visit.shape, "threads": visit.threads, "round": visit.round}
        record["samples"].append({**keys, **result})
        out.write_text(json.dumps(record, indent=1) + "\n")
        speeds = [f"{test.name} {test.tokens / min(result['seconds'][test.name]):.1f}" for test in visit.tests]
        say(f"[{index + 1}/{len(order)}] round {visit.round + 1}, {name}: {', '.join(speeds)} tok/s")
    out.write_text(json.dumps(record, indent=1) + "\n")
    return record


def _measure_machine(machine: dict[str, Any], threads: int, plan: Plan) -> None:
    """Add the read bandwidth of this moment to ``machine``."""
    output, _ = _call(_our_command({"limits": True, "threads": threads}), plan.launcher)
    limits = json.loads(output)
    machine["cpu"] = limits["cpu"]
    machine.setdefault("read_gb_s", {}).setdefault(str(threads), []).append(round(limits["read_gb_s"], 2))


def _names(tests: Sequence[BenchTest]) -> str:
    return " ".join(test.name for test in tests)


def _describe(plan: Plan) -> dict[str, Any]:
    """Return what a record says of its plan."""
    described = asdict(plan)
    described["groups"] = [[test.name for test in group] for group in plan.groups]
    for entry, contestant in zip(described["contestants"], plan.contestants, strict=True):
        entry["ours"] = contestant.ours
    return described
