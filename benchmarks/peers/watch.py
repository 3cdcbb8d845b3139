"""Run a command and tell how much of the machine other processes took meanwhile: ``watch.py COMMAND...``.

Prints a JSON object: the command's standard output, its exit status, the end of its standard error, and the share.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from time import perf_counter

STAT = Path("/proc/stat")
KEPT_ERROR_CHARACTERS = 2000
# The columns of /proc/stat that count work: user, nice, system, irq, softirq, and steal: time that the host kept.
BUSY_COLUMNS = (0, 1, 2, 5, 6, 7)


def busy_seconds() -> float:
    """Return the seconds that all processors have worked since the machine started; 0 where this is not told."""
    if not STAT.exists():
        return 0.0
    ticks = [int(value) for value in STAT.read_text().splitlines()[0].split()[1:]]
    return sum(ticks[column] for column in BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Run the command and print the object."""
    busy, own, start = busy_seconds(), _child_seconds(), perf_counter()
    done = subprocess.run(sys.argv[1:], capture_output=True, text=True, errors="replace")
    wall = perf_counter() - start
    others = (busy_seconds() - busy) - (_child_seconds() - own)
    share = max(0.0, others / (wall * (os.cpu_count() or 1)))
    tail = done.stderr[-KEPT_ERROR_CHARACTERS:]
    json.dump({"output": done.stdout, "status": done.returncode, "error": tail, "others": round(share, 4)}, sys.stdout)


if __name__ == "__main__":
    main()
