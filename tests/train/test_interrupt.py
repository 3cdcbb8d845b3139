"""Being asked to stop: what arrives twice at once is one wish, what comes later is another."""

from __future__ import annotations

import os
import signal

import pytest

from wrinklefree.train import interrupt
from wrinklefree.train.interrupt import stop_requested


def test_two_signals_at_once_are_one_wish() -> None:
    """`timeout` signals a command and then its whole group; the step in progress must not be lost by that."""
    said: list[str] = []
    with stop_requested("stopping", said.append) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.is_set()
    assert said == ["stopping"]


def test_a_later_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    clock = iter((10.0, 13.0))
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), stop_requested("stopping", lambda line: None):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
