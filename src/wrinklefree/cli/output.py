"""Where a verb's words and figures go: tables for people, JSON for programs, never mixed.

With ``--json -`` standard output holds the JSON and nothing else, so everything for people moves to standard error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.errors import InputError

STANDARD_OUTPUT = Path("-")
_SECONDS_BETWEEN_LINES = 5.0
_WIDTH_OF_LOGS = 120


class Output:
    """The two outputs of one verb. ``json_file`` is what ``--json`` said."""

    def __init__(self, json_file: Path | None) -> None:
        if json_file not in (None, STANDARD_OUTPUT) and not json_file.parent.is_dir():
            raise InputError(f"--json {json_file}: the directory {json_file.parent} does not exist")
        self.json_file = json_file
        self.console = Console(stderr=json_file == STANDARD_OUTPUT, highlight=False, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = _WIDTH_OF_LOGS

    def line(self, text: str) -> None:
        """Print one line for people."""
        self.console.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print a table whose first column is never cut."""
        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            table.add_column(column, no_wrap=index == 0, overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.console.print(table)

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
