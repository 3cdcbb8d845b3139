"""An experiment as stages that stop when the time is up and go on with the same command.

WORK/done/STAGE marks what is finished. A stage in progress is asked to stop after its time; it saves its state, and
exit code 75 says that there is more to do.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from wrinklefree.artifact.provenance import machine

MORE_TO_DO = 75
# The wf of this interpreter, whether or not its script is on the PATH.
_WF = [sys.executable, "-c", "import sys; sys.argv[0] = 'wf'; from wrinklefree.cli.main import main; sys.exit(main())"]
_GRACE_SECONDS = 240.0  # for the step in progress and its state


class OutOfTime(Exception):
    """The stage stopped because the time was up; it goes on the next time."""


@dataclass(frozen=True)
class Commands:
    """Where everything is, and when to stop."""

    work: Path
    deadline: float

    @property
    def directory(self) -> Path | None:
        """Where commands run; None: where this one was called."""
        return None

    def command(self, *words: str | Path) -> None:
        """Run a command to its end, or stop it at the deadline.

        Raises: OutOfTime, or SystemExit with the command's own exit code.
        """
        if time.monotonic() >= self.deadline:
            raise OutOfTime
        shown = ("wf", *words[len(_WF) :]) if words[: len(_WF)] == tuple(_WF) else words
        line, started = " ".join(map(str, shown)), time.monotonic()
        print("$", line, flush=True)
        process = subprocess.Popen([str(word) for word in words], cwd=self.directory)
        asked_to_stop = False
        try:
            code = process.wait(timeout=max(self.deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            asked_to_stop = True
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        self._record(line, time.monotonic() - started, code)
        if code and asked_to_stop:
            raise OutOfTime
        if code:
            raise SystemExit(code)

    def _record(self, command: str, seconds: float, code: int) -> None:
        """Add a line to WORK/commands.jsonl: what was run, for how long, on what, and how it ended."""
        entry = {"command": command, "seconds": round(seconds, 1), "exit": code, "machine": machine()}
        with (self.work / "commands.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def wf(self, *words: str | Path) -> None:
        self.command(*_WF, *words)


R = TypeVar("R", bound=Commands)


def chosen(stages: Mapping[str, Callable[[R], None]], names: str) -> list[str]:
    """Return the stages of a list with commas, in their own order. Raises: SystemExit for one that is not there."""
    asked = names.split(",")
    if unknown := sorted(set(asked) - set(stages)):
        print(f"--stages: {', '.join(unknown)}: choose from {', '.join(stages)}", file=sys.stderr)
        raise SystemExit(2)
    return [stage for stage in stages if stage in asked]


def go(run: R, stages: Mapping[str, Callable[[R], None]], names: list[str]) -> int:
    """Run the named stages that are not done; return the exit code."""
    (run.work / "done").mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for stage in names:
        done = run.work / "done" / stage
        if done.exists():
            continue
        started = time.monotonic()
        try:
            stages[stage](run)
        except OutOfTime:
            print(f"time is up in stage {stage}; the same command goes on", flush=True)
            return MORE_TO_DO
        done.write_text(f"{time.monotonic() - started:.1f} seconds in its last piece\n", encoding="utf-8")
    return 0
