"""Compare our engine with its peers: ``python -m benchmarks.peers PLAN.toml --out results``. See README.md."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.peers.plan import BenchTest, Plan, read_plan
from benchmarks.peers.report import markdown
from benchmarks.peers.runner import run_plan

from wrinklefree.errors import InputError


def _narrowed(plan: Plan, options: argparse.Namespace) -> Plan:
    """Return the plan with what the command line leaves of it."""
    changes: dict[str, object] = {}
    if options.shape:
        changes["shapes"] = tuple(shape for shape in plan.shapes if shape in options.shape)
    if options.threads:
        changes["threads"] = tuple(options.threads)
    if options.test:
        wanted = {BenchTest(name) for name in options.test}
        groups = (tuple(test for test in group if test in wanted) for group in plan.groups)
        changes["groups"] = tuple(group for group in groups if group)
    if options.engine:
        kept = tuple(c for c in plan.contestants if any(part in c.name for part in options.engine))
        changes["contestants"] = kept
    if options.rounds:
        changes["rounds"] = options.rounds
    return dataclasses.replace(plan, **changes)  # type: ignore[arg-type]


def main() -> None:
    """Run the comparison, or make the report of a record again."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("plan", type=Path, help="TOML file (see example.toml), or the JSON of an earlier run")
    parser.add_argument("--out", type=Path, default=Path("peers"), help="writes OUT.json and OUT.md")
    parser.add_argument("--shape", action="append", help="only this shape (repeatable)")
    parser.add_argument("--threads", action="append", type=int, help="only this number of threads (repeatable)")
    parser.add_argument("--test", action="append", help="only this test of the plan, such as tg64 (repeatable)")
    parser.add_argument("--engine", action="append", help="only engines whose name contains this (repeatable)")
    parser.add_argument("--rounds", type=int, help="instead of the plan's")
    options = parser.parse_args()
    try:
        if options.plan.suffix == ".json":
            record = json.loads(options.plan.read_text())
        else:
            plan = _narrowed(read_plan(options.plan), options)
            record = run_plan(plan, options.out.with_suffix(".json"), lambda text: print(text, flush=True))
    except InputError as error:
        sys.exit(f"benchmarks.peers: {error}")
    report = markdown(record)
    options.out.with_suffix(".md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
