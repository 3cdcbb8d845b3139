"""Ctrl-C while training: finish the step, then stop in order."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from wrinklefree.train.metrics import say


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """Set the event on the first SIGINT or SIGTERM; a second one stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        say("Stopping after this step (once more to stop at once, losing it) ...")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
