"""Two processes against one: the same weights, loss and token count, though each sees other numbers of targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "processes_script.py"


def results(processes: int) -> list[list[float]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(processes)], capture_output=True, text=True, env=environment, timeout=180
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return [[float(x) for x in line.split()[1:]] for line in lines]


@pytest.mark.slow
def test_two_processes_equal_one() -> None:
    (one,) = results(1)
    two = results(2)
    assert len(two) == 2 and two[0] == two[1]
    # The same sums in another order, float32: three steps, relative 1e-5.
    assert two[0] == pytest.approx(one, rel=1e-5)
    assert one[-1] == 3 * 8 * 24
