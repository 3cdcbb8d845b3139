"""A command of a trial as a child process: started under a guard, ended with its whole group, its last words kept."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from wrinklefree.sweep import guard

_LOOK_SECONDS = 0.1
_LAST_CHARACTERS = 4000
_OURS = "import sys; sys.argv[0] = 'wf'; from wrinklefree.cli.main import main; sys.exit(main())"


def wf_command() -> list[str]:
    """Return the words that run our command line with this interpreter, wherever `wf` is installed."""
    return [sys.executable, "-P", "-c", _OURS]


class Child:
    """Runs from its creation on; ``log`` takes what it prints, and the file .err beside it what it complains of."""

    def __init__(self, words: list[str], ours: bool, log: Path, lock: Path) -> None:
        command = [*wf_command(), *words] if ours else words
        guarded = [sys.executable, "-I", "-S", str(guard.__file__), str(lock), *command]
        self._logs = (log.with_suffix(".err"), log)
        with self._logs[0].open("ab") as errors, log.open("ab") as printed:
            self._process = subprocess.Popen(
                guarded, stdin=subprocess.PIPE, stdout=printed, stderr=errors, start_new_session=True
            )

    def wait(self, seconds: float) -> int | None:
        """Return the exit code (128 + N for a signal N) as soon as there is one, None after so many seconds."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self, grace_seconds: float) -> None:
        """Ask it to stop; after the grace, or a second call with 0, end it."""
        if grace_seconds > 0:
            self._signal(signal.SIGTERM)
            until = time.monotonic() + grace_seconds
            while self._process.poll() is None and time.monotonic() < until:
                time.sleep(_LOOK_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()

    def last_words(self) -> str:
        """Return the last line of its complaints; where it had none, the last that it printed."""
        return next((line for line in map(_last_line, self._logs) if line), "it said nothing")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:  # its number is ours until it was waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _LAST_CHARACTERS))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:1000] if lines else ""


def why(code: int, words: str) -> str:
    """Return one line on an exit code that is not 0."""
    if code > 128:
        try:
            name = signal.Signals(code - 128).name
        except ValueError:
            name = f"signal {code - 128}"
        hint = "; out of memory?" if name == "SIGKILL" else ""
        return f"ended by {name}{hint} ({words})"
    return f"exit {code}: {words}"
