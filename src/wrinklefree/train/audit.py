"""What happened in a run besides its figures: OUT/audit holds one file for each event, OUT/summary.json how it stands.

    audit/20260301T120000.000000Z_nonfinite_step_1a2b3c4d.json    {"type", "message", "time", ...}

The message is what was printed, word for word. At most ``_FILES`` files are kept, none longer than ``_DAYS`` days.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes, read_json, write_bytes
from wrinklefree.errors import FormatError, InputError
from wrinklefree.train.position import Position

TYPES = (
    "dirty_git", "sync_failed", "checkpoint_corrupted", "resume_config_mismatch", "training_interrupted",
    "training_failed", "credentials_missing", "nonfinite_step", "fallback",
)  # fmt: skip
_FILES, _DAYS = 100, 90
_GIT_SECONDS = 10

_speaks = True
_open: Summary | None = None


def first_speaks(rank: int) -> None:
    """Let only the first of several processes `say` what all of them would."""
    global _speaks
    _speaks = rank == 0


def say(line: str) -> None:
    """Print one line for the person who watches the run."""
    if _speaks:
        print(line, file=sys.stderr, flush=True)


def note(kind: str, message: str, printed: bool = False) -> None:
    """Print ``message`` (unless it was, or will be, ``printed`` elsewhere) and keep it in the audit of the open run."""
    if not printed:
        say(message)
    if _open is not None and _speaks:
        _open.count(kind)
        write_event(_open.out, kind, message)


def write_event(out: Path, kind: str, message: str) -> None:
    """Write one event into ``out``/audit; a disk that refuses is no reason to stop, because the message was printed."""
    if kind not in TYPES:
        raise ValueError(f"audit type {kind!r}: not one of {', '.join(TYPES)}")
    now = datetime.now(UTC)
    fingerprint = hashlib.sha256(f"{kind} {message}".encode()).hexdigest()[:8]
    name = f"{now:%Y%m%dT%H%M%S.%fZ}_{kind}_{fingerprint}.json"
    directory = out / "audit"
    with suppress(OSError, InputError):
        directory.mkdir(exist_ok=True)
        event = {"type": kind, "message": message, "time": now.isoformat(), "process": os.getpid()}
        write_bytes(directory / name, json_bytes(event))
        _forget(directory, now)


def _forget(directory: Path, now: datetime) -> None:
    files = sorted(directory.glob("*_*.json"))
    oldest = f"{datetime.fromtimestamp(now.timestamp() - _DAYS * 86400, UTC):%Y%m%dT%H%M%S}"
    for path in files:
        if path.name < oldest or path in files[:-_FILES]:
            path.unlink(missing_ok=True)


class Summary:
    """OUT/summary.json: RUNNING, COMPLETED, INTERRUPTED or FAILED, how far, and how often each type of event came."""

    def __init__(self, out: Path, values: Mapping[str, Any]) -> None:
        self.out = out
        before = _read(out / "summary.json")
        self.left_running = before.get("status") == "RUNNING"
        self._events = {kind: int(before.get("events", {}).get(kind, 0)) for kind in TYPES}
        self._values = {**values, "started": before.get("started", _now())}
        self._last: dict[str, Any] = {key: before.get(key, 0) for key in ("steps", "tokens", "seconds")}
        self._last["figures"] = before.get("figures", {})

    def count(self, kind: str) -> None:
        """Count an event."""
        self._events[kind] += 1

    def see(self, position: Position, figures: Mapping[str, float]) -> None:
        """Remember where the run is; written at the next `write`."""
        # JSON has no NaN; a figure that is none is written as null.
        clean = {key: value if abs(value) < float("inf") else None for key, value in figures.items()}
        self._last = {
            "steps": position.step, "tokens": position.tokens, "seconds": position.seconds, "figures": clean
        }  # fmt: skip

    def write(self, status: str) -> None:
        """Write the file; a full disk must not hide the reason why a run ends."""
        events = {kind: count for kind, count in self._events.items() if count}
        values = {
            "status": status, **self._values, "updated": _now(), "process": os.getpid(), **self._last,
            "fallbacks": self._events["fallback"], "events": events,
        }  # fmt: skip
        with suppress(OSError, InputError):
            write_bytes(self.out / "summary.json", json_bytes(values))


@contextmanager
def open_summary(out: Path, values: Mapping[str, Any]) -> Iterator[Summary]:
    """Keep ``out``/summary.json and the audit while the block runs; an error makes the run FAILED.

    The block itself writes COMPLETED or INTERRUPTED. All but the first of several processes keep silent.
    """
    global _open
    summary = Summary(out, values)
    if not _speaks:
        yield summary
        return
    _open = summary
    try:
        if summary.left_running:
            note("training_interrupted", "The run before this one ended without saying so; it was probably killed.")
        summary.write("RUNNING")
        _note_dirty_git()
        yield summary
    except KeyboardInterrupt:
        note("training_interrupted", "Interrupted at once: steps since the last saved state are lost.")
        summary.write("INTERRUPTED")
        raise
    except Exception as error:
        note("training_failed", " ".join(str(error).split()) or type(error).__name__, printed=True)
        summary.write("FAILED")
        raise
    finally:
        _open = None


def _note_dirty_git() -> None:
    """Say so when the package runs from a repository with changes that no commit has."""
    package = Path(__file__).parents[1]
    command = ["git", "-C", str(package), "status", "--porcelain", "--untracked-files=normal", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    changed = len(done.stdout.splitlines())
    if done.returncode == 0 and changed:
        note(
            "dirty_git",
            f"NOTE: {package} has {changed} files with changes that no commit has; keep them to repeat this.",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.is_file() else {}
    except FormatError:
        return {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
