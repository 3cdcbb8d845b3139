"""Where a verb's words and figures go: tables for people, JSON for programs, never mixed.

With ``--json -`` standard output holds the JSON and nothing else, so everything for people moves to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.errors import InputError

STANDARD_OUTPUT = Path("-")
_SECONDS_BETWEEN_LINES = 5.0


class Output:
    """The two outputs of one verb. ``json_file`` is what ``--json`` said."""

    def __init__(self, json_file: Path | None) -> None:
        if json_file not in (None, STANDARD_OUTPUT) and not json_file.parent.is_dir():
            raise InputError(f"--json {json_file}: the directory {json_file.parent} does not exist")
        self.json_file = json_file
        self.console = Console(stderr=json_file == STANDARD_OUTPUT, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """Print one line for people."""
        self.console.print(text, markup=False)

    def finish(self, value: dict[str, Any]) -> None:
        """Write the figures where ``--json`` asked for them."""
        if self.json_file == STANDARD_OUTPUT:
            json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
            sys.stdout.write("\n")
        elif self.json_file is not None:
            write_bytes(self.json_file, json_bytes(value))


@contextmanager
def progress(title: str) -> Iterator[Callable[[float, str], None]]:
    """Give a function of (share done from 0 to 1, what is going on) that shows progress on standard error.

    A bar where a terminal is attached, else a plain line at most every few seconds.
    """
    if sys.stderr.isatty():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda share, what: bar.update(task, completed=share, description=f"{title}: {what}")
        return
    last = time.monotonic()

    def log(share: float, what: str) -> None:
        nonlocal last
        if share >= 1.0 or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {share:4.0%} {what}", file=sys.stderr)

    yield log
