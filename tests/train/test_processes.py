"""Two processes against one: the same weights, loss and token count, though each sees other numbers of targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "processes_script.py"


def results(processes: int, directory: Path) -> list[list[float]]:
    directory.mkdir()
    command = [sys.executable, str(SCRIPT), str(processes), str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    return [[float(x) for x in path.read_text().split()] for path in sorted(directory.iterdir())]


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    (one,) = results(1, tmp_path / "one")
    two = results(2, tmp_path / "two")
    assert len(two) == 2 and two[0] == two[1]
    # The same sums in another order, float32: three steps, relative 1e-5.
    assert two[0] == pytest.approx(one, rel=1e-5)
    assert one[-1] == 3 * 8 * 24
