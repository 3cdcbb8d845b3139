"""`wf serve` as a process: what it says, what it answers while it loads, how it ends."""

from __future__ import annotations

import signal
from pathlib import Path

from served_process import ServedProcess


def test_serves_and_ends_cleanly_on_sigterm(toy: Path) -> None:
    with ServedProcess(toy, "--slots", "2") as served:
        assert served.client.get("/health").status_code == 200
        assert served.stop(signal.SIGTERM) == 0
        assert served.process.stdout is not None and served.process.stdout.read() == ""
        served.wait_for("stopped")
