"""Log lines come in order and bounded in rate, and whoever writes one never waits for a disk or a reader."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from wrinklefree.server.access_log import BoundedHandler, LogWriter

PIPE_BYTES = 65536


@pytest.fixture
def logger() -> logging.Logger:
    found = logging.Logger("of this test")
    found.setLevel(logging.INFO)
    return found


def test_lines_in_order_and_what_was_left_out(tmp_path: Path, logger: logging.Logger) -> None:
    """Without a rate only the burst comes through; the next line that does tells how many did not."""
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno())
        handler = BoundedHandler(writer, per_second=0, burst=3)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        for number in range(10):
            logger.info("line %d", number)
        handler._allowed = 1
        logger.info("line with \ud800, a half character")
        writer.flush(30)
    expected = ["line 0", "line 1", "line 2", "(7 lines left out)", "line with \\ud800, a half character"]
    assert (tmp_path / "log").read_text().splitlines() == expected


def test_a_pipe_that_nobody_reads_holds_nobody_up(logger: logging.Logger) -> None:
    """Far more than the pipe takes is logged; memory is bounded, and the newest lines come when it is read at last."""
    reading, writing = os.pipe()
    try:
        writer = LogWriter(writing)
        logger.addHandler(BoundedHandler(writer, burst=10_000))
        for number in range(10_000):
            logger.info("%d %s", number, "x" * 100)
        assert sum(map(len, writer._lines)) < 10_000 * 100 / 2
        found = b""
        while b" 9999 " not in found:
            found += os.read(reading, PIPE_BYTES)
        writer.flush(30)
    finally:
        os.close(writing)
        os.close(reading)


def test_a_full_disk_loses_lines_and_nothing_else(logger: logging.Logger) -> None:
    with Path("/dev/full").open("wb") as full:
        writer = LogWriter(full.fileno())
        logger.addHandler(BoundedHandler(writer))
        for _ in range(3):
            logger.error("lost")
            writer.flush(30)
        assert not writer._lines and writer._thread.is_alive()
