"""Runs on disk: where they are, how they stand, and the lines of their metrics.jsonl as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import InputError

METRICS = "metrics.jsonl"
# Of the file, in one answer: about two thousand steps.
PIECE_BYTES = 1 << 20
_MOST_RUNS = 32
_MOST_SUMMARY_BYTES = 1 << 20


@dataclass(frozen=True)
class Run:
    """One run: its name on the page and its directory."""

    name: str
    directory: Path

    def status(self) -> dict[str, Any]:
        """Return ``name``, ``state`` (what summary.json says, lower case; else "running"), ``age_seconds`` of the
        newest figures (null while there are none) and ``stage``."""
        summary = _read_object(self.directory / "summary.json")
        try:
            age: float | None = max(0.0, time.time() - (self.directory / METRICS).stat().st_mtime)
        except OSError:
            age = None
        state, stage = summary.get("status"), summary.get("stage")
        return {
            "name": self.name,
            "state": state.lower() if isinstance(state, str) else "running",
            "stage": stage if isinstance(stage, str) else None,
            "age_seconds": age,
        }

    def figures(self, start: int) -> dict[str, Any]:
        """Return the whole lines from byte ``start`` on, at most about `PIECE_BYTES` of them.

        ``rows``: objects, a line each; lines that are none are left out. ``next``: where to go on. ``more``: whether
        there is more already. ``anew``: the file is shorter than ``start``, the run began again; this is its beginning.
        """
        try:
            with (self.directory / METRICS).open("rb") as stream:
                size = stream.seek(0, 2)
                anew = start > size
                start = 0 if anew else start
                stream.seek(start)
                data = stream.read(PIECE_BYTES)
                if b"\n" not in data and len(data) == PIECE_BYTES:
                    data += stream.readline(PIECE_BYTES)
        except OSError:  # not begun yet, or removed
            return {"rows": [], "next": 0, "more": False, "anew": start > 0}
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be half written
        end = start + len(whole)
        rows = [row for line in whole.splitlines() if (row := _row(line)) is not None]
        return {"rows": rows, "next": end, "more": bool(whole) and end < size, "anew": anew}


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Return the runs at paths: a run's directory, its metrics.jsonl, or a directory of runs.

    Raises: InputError for a path without a run, and for more than 32.
    """
    found: dict[Path, None] = {}
    for path in paths:
        here = _runs_at(path)
        if not here:
            raise InputError(f"{path}: found no {METRICS} in it or in a directory below; give the directory of a "
                             "training run (wf train ... out=DIR)")  # fmt: skip
        found.update(dict.fromkeys(directory.resolve() for directory in here))
    if len(found) > _MOST_RUNS:
        raise InputError(f"found {len(found)} runs, at most {_MOST_RUNS} fit on the board; name fewer")
    return [Run(name, directory) for name, directory in zip(_names(list(found)), found, strict=True)]


def _runs_at(path: Path) -> list[Path]:
    if path.name == METRICS and path.is_file():
        return [path.parent]
    if (path / METRICS).is_file():
        return [path]
    return sorted(each.parent for each in path.glob(f"*/{METRICS}"))


def _names(directories: list[Path]) -> list[str]:
    """Return the last parts of the paths, as many as tell them apart."""
    for parts in range(1, 8):
        names = ["/".join(directory.parts[-parts:]) for directory in directories]
        if len(set(names)) == len(names):
            return names
    return [str(directory) for directory in directories]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("step"), int):
        return None
    return {name: value for name, value in found.items() if value is None or isinstance(value, int | float)}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            found = json.loads(stream.read(_MOST_SUMMARY_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
