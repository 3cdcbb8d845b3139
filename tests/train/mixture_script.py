"""Train a toy under influence in N processes over gloo; each writes DIRECTORY/RANK with the mixture it ended with.

Usage: mixture_script.py N KIND WORKERS DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch
from influence_toys import LENGTH, toy_influence, toy_manager
from lightning.fabric import Fabric

from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.session import LoopConfig


def main(processes: int, kind: str, workers: int, directory: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto")
    fabric.launch()
    companion = toy_influence(kind, workers=workers)
    optimizer = torch.optim.SGD(companion.student.parameters(), lr=0.05)
    result = run(
        companion.student, companion.stream, optimizer, toy_manager(),
        config=LoopConfig(micro_batch=2 // processes, accumulation=2), budget=Budget(tokens=6 * 4 * LENGTH),
        schedule=Schedule("constant", warmup_ratio=0.0), companions=[companion], fabric=fabric,
    )  # fmt: skip
    out = {"history": companion.stream.mixture.history, "loss": result.figures["loss"]}
    (directory / str(fabric.global_rank)).write_text(json.dumps(out))
    fabric.barrier()  # the launcher ends the others when the first process ends


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
