"""Ctrl-C while working: finish what is begun, then stop in order."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from wrinklefree.train.audit import say

STOPPING = "Stopping after this step (once more to stop at once, losing it) ..."
_SAME_WISH_SECONDS = 2.0


@contextmanager
def stop_requested(message: str = STOPPING, tell: Callable[[str], None] = say) -> Iterator[threading.Event]:
    """Set the event on the first SIGINT or SIGTERM and ``tell`` the message; one seconds later stops at once.

    What a program sends to a process and to its group (as `timeout` does) arrives twice and is one wish.
    """
    stop, first = threading.Event(), 0.0
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: Any) -> None:
        nonlocal first
        if stop.is_set():
            if time.monotonic() - first > _SAME_WISH_SECONDS:
                raise KeyboardInterrupt
            return
        first = time.monotonic()
        stop.set()
        tell(message)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
