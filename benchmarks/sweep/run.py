"""Run every study of a comparison: python -m benchmarks.sweep.run function|training RESULTS.json --work DIR.

A study is a run of `wf sweep` whose workers share one SQLite file. In the Bayesian training study of the first seed a
worker is killed with -9 in the middle of a trial. A finished study is not run again; one that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.sweep.toy import write_toy

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.artifact.provenance import provenance
from wrinklefree.sweep.process import wf_command
from wrinklefree.sweep.table import Event, Table
from wrinklefree.sweep.trial import COMPLETE, RUNNING, Trial

HERE = Path(__file__).parent
METHODS = ("bayesian", "random")
_KILL_AFTER = 2  # complete trials, before the worker is killed
_LOOK_SECONDS = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("function", "training"))
    parser.add_argument("results", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="directory of the studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    if given.what == "training":
        write_toy(given.work / "toy")
    studies = []
    for seed in given.seeds:
        for method in METHODS:
            kill = given.what == "training" and seed == given.seeds[0] and method == "bayesian"
            studies.append(run(given.what, method, seed, given.work.absolute(), given.workers, kill))
            record = {"what": given.what, "workers": given.workers, "studies": studies, "provenance": provenance()}
            write_bytes(given.results, json_bytes(record))
            print(f"{studies[-1]['study']}: best {studies[-1]['best']}", flush=True)


def run(what: str, method: str, seed: int, work: Path, workers: int, kill: bool) -> dict[str, Any]:
    """Run one study to its end and return it as plain values."""
    name = f"{what}-{method}-{seed}"
    space = work / f"{name}.yaml"
    text = (
        (HERE / f"{what}.yaml").read_text().replace(f"name: {what}", f"name: {name}\nmethod: {method}\nseed: {seed}", 1)
    )
    space.write_text(
        text.replace("PYTHON", sys.executable).replace("HERE", str(HERE)).replace("TOY", str(work / "toy"))
    )
    out, document = work / name, work / f"{name}.json"
    command = [*wf_command(), "sweep", str(space), "--workers", str(workers), "--out", str(out)]
    begun = time.monotonic()
    with (work / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            [*command, "--report", str(out / "report"), "--json", str(document)], stderr=log, stdout=log
        )
        killed = _kill_a_worker(out / "study.sqlite", name, child) if kill else None
        if child.wait():
            raise SystemExit(f"{name}: wf sweep ended with {child.returncode}; see {work / name}.log")
    table = Table(str(out / "study.sqlite"), name)
    trials, events = table.trials(), table.events()
    table.close()
    return _plain(name, method, seed, trials, events) | {"killed": killed, "seconds": time.monotonic() - begun}


def _kill_a_worker(database: Path, name: str, sweep: subprocess.Popen[bytes]) -> dict[str, Any] | None:
    """Wait for a few complete trials, then kill the worker of a running one as a crash would."""
    while sweep.poll() is None:
        time.sleep(_LOOK_SECONDS)
        if not database.is_file():
            continue
        table = Table(str(database), name)
        trials = table.trials()
        table.close()
        running = [trial for trial in trials if trial.state == RUNNING and trial.worker]
        if any(trial.lost for trial in trials):
            return None  # killed in an earlier run of this program
        if sum(trial.state == COMPLETE for trial in trials) < _KILL_AFTER or not running:
            continue
        time.sleep(1.0)  # into the trial
        worker = str(running[0].worker)
        host, process, _ = worker.rsplit(":", 2)
        assert host == socket.gethostname()
        os.kill(int(process), signal.SIGKILL)
        return {"worker": worker, "trial": running[0].number}
    return None


def _plain(name: str, method: str, seed: int, trials: list[Trial], events: list[Event]) -> dict[str, Any]:
    values = [min(trial.figures.values()) if trial.state == COMPLETE else None for trial in trials]
    found = [value for value in values if value is not None]
    return {
        "study": name,
        "method": method,
        "seed": seed,
        "best": min(found),
        "values": values,
        "trials": [
            {
                "parameters": dict(trial.parameters), "state": trial.state, "origin": trial.origin,
                "worker": trial.worker, "attempts": trial.attempts, "lost": trial.lost,
                "seconds": (trial.ended or 0.0) - (trial.started or 0.0), "error": trial.error,
            }
            for trial in trials
        ],
        "events": [[event.number, round(event.time - events[0].time, 2), event.what, event.worker] for event in events],
    }  # fmt: skip


if __name__ == "__main__":
    main()
