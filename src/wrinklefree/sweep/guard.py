"""The small process between a worker and a trial's command: when the worker dies, however it dies, the command ends.

Run as a file: guard.py LOCK COMMAND... It leads a process group of its own, holds the lock of the trial's directory
while anything of the group is alive, and its standard input is a pipe that ends with the worker. Only the standard
library is imported, because it runs beside every stage.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time

DIRECTORY_IN_USE = 75
_GRACE_SECONDS = 60.0
_LOOK_SECONDS = 0.1


def main(lock: str, command: list[str]) -> int:
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return DIRECTORY_IN_USE
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # meant for the command, which shares the group; a handler, because
        # what is ignored would stay ignored in the command
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[handle])
    except OSError as error:
        print(f"{command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return 127
    while (code := child.poll()) is None:
        if select.select([0], [], [], _LOOK_SECONDS)[0] and not os.read(0, 1):
            _end(child)
    os.killpg(0, signal.SIGTERM)  # what the command left behind
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen[bytes]) -> None:
    """The worker is gone: let the command save what it has, then end the whole group, ourselves among it."""
    os.killpg(0, signal.SIGTERM)
    until = time.monotonic() + _GRACE_SECONDS
    while child.poll() is None and time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
