"""The command line as a script, because Lightning starts further processes by running the same file again.

With KILL=RANK:STEP in the environment that process kills itself after that step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping

from wrinklefree.cli import train
from wrinklefree.cli.main import main
from wrinklefree.train.position import Position


def _kill_after_a_step(rank: int, step: int) -> None:
    describe = train._describe

    def watch(position: Position, figures: Mapping[str, float]) -> str:
        if position.step == step and int(os.environ.get("LOCAL_RANK", 0)) == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return describe(position, figures)

    train._describe = watch


if __name__ == "__main__":
    if kill := os.environ.get("KILL"):
        _kill_after_a_step(*map(int, kill.split(":")))
    sys.exit(main())
