"""Log lines that cannot hurt the server: bounded in rate, and written by a thread of their own.

A disk that is full, or a pipe that nobody reads, stops the lines and nothing else. No line holds a prompt or an answer.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque

# A second; and what may come at once after a pause.
_LINES_PER_SECOND = 50.0
_BURST_LINES = 200.0
_MAX_WAITING = 1_000
_MAX_LINE_CHARACTERS = 4_000
_FLUSH_SECONDS = 1.0


class LogWriter:
    """Writes lines to a file descriptor, in order, without ever holding up whoever has one to say."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque(maxlen=_MAX_WAITING)  # the oldest fall out when the reader is stuck
        self._news = threading.Condition()
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Take a line, without its end."""
        with self._news:
            self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
            self._news.notify()

    def flush(self, seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until all lines are written, but not longer than ``seconds``."""
        with self._news:
            self._news.wait_for(lambda: not self._lines and not self._busy, seconds)

    def _work(self) -> None:
        while True:
            with self._news:
                self._busy = False
                self._news.notify_all()
                self._news.wait_for(lambda: bool(self._lines))
                lines = b"".join(self._lines)
                self._lines.clear()
                self._busy = True
            self._put(lines)

    def _put(self, lines: bytes) -> None:
        while lines:
            try:
                lines = lines[os.write(self._descriptor, lines) :]
            except OSError:  # a full disk, a reader that has gone: there is nowhere to say it
                return


class BoundedHandler(logging.Handler):
    """Hands log records to a writer, so many a second at most, and counts what it left out."""

    def __init__(self, writer: LogWriter, per_second: float = _LINES_PER_SECOND, burst: float = _BURST_LINES) -> None:
        super().__init__()
        self._writer = writer
        self._per_second = per_second
        self._burst = burst
        self._allowed = burst
        self._at = time.monotonic()
        self._left_out = 0
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record if the rate allows it (called with the handler's lock)."""
        now = time.monotonic()
        self._allowed = min(self._burst, self._allowed + (now - self._at) * self._per_second)
        self._at = now
        if self._allowed < 1:
            self._left_out += 1
            return
        self._allowed -= 1
        if self._left_out:
            self._writer.write(f"({self._left_out} lines left out)")
            self._left_out = 0
        self._writer.write(self.format(record)[:_MAX_LINE_CHARACTERS])


def log_to(writer: LogWriter, access: bool) -> None:
    """Send the program's log there; with ``access``, a line for each request too.

    Errors and requests have separate rates, so that a flood of requests does not hide an error.
    """
    for name, level in (("wrinklefree", logging.INFO), ("uvicorn.error", logging.WARNING), ("asyncio", logging.ERROR)):
        _send(name, level, writer)
    _send("wrinklefree.access", logging.INFO if access else logging.CRITICAL, writer)


def _send(name: str, level: int, writer: LogWriter) -> None:
    logger = logging.getLogger(name)
    logger.handlers[:] = [BoundedHandler(writer)]
    logger.setLevel(level)
    logger.propagate = False
