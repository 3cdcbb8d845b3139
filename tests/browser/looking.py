"""A page that is looked at, and how to wait for it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


def until(page: Any, script: str, argument: Any = None, seconds: float = 30) -> None:
    """Wait until a script says yes. (Playwright's own waiting needs eval, which the pages forbid.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(script, argument):
        assert time.monotonic() < deadline, f"never true: {script}"
        page.wait_for_timeout(30)


@dataclass
class Opened:
    """A page with everything that went wrong in it, and all that it asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
