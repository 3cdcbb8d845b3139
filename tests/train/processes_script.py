"""Train a toy in N processes over gloo; each writes DIRECTORY/RANK with what must not depend on N.

Usage: processes_script.py N DIRECTORY
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch
from lightning.fabric import Fabric
from train_toys import ToyStream, toy_model

from wrinklefree.models.forward import forward
from wrinklefree.objectives import Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Schedule
from wrinklefree.train.session import LoopConfig


def main(processes: int, directory: Path) -> None:
    fabric = Fabric(accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto")
    fabric.launch()
    student, teacher = toy_model(1, ternary=True), toy_model(2)
    terms = {"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD()), "layerwise": Term(Layerwise())}
    result = run(
        student, ToyStream(), torch.optim.SGD(student.parameters(), lr=0.05), ObjectiveManager(terms),
        config=LoopConfig(micro_batch=4 // processes, accumulation=2), budget=Budget(tokens=3 * 8 * 24),
        teacher=LocalTeacher(lambda: teacher, forward), schedule=Schedule("constant", warmup_ratio=0.0), fabric=fabric,
    )  # fmt: skip
    weights = torch.cat([p.detach().flatten() for p in student.parameters()]).double()
    out = (weights.sum().item(), weights.norm().item(), result.figures["loss"], result.position.tokens)
    (directory / str(fabric.global_rank)).write_text(" ".join(map(str, out)))
    fabric.barrier()  # the launcher ends the others when the first process ends


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
