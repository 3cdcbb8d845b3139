"""Run a toy for some steps in a directory; killed and started again it must end where an uninterrupted run ends.

Usage: resume_script.py TOTAL_STEPS KILL_AT STATE_DIR...
Prints, for each directory, a hash of weights and optimizer state, and the counters.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch
from train_toys import ToyStream, toy_model

from wrinklefree.models.forward import forward
from wrinklefree.objectives import AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.curriculum import Curriculum, Phase, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.quant.bitlinear import quant_strength
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig


def main(directory: Path, steps: int, kill_at: int) -> None:
    torch.manual_seed(0)
    # Dropout draws from the generator at every step: its state must come back too.
    student = toy_model(1, ternary=True, attention_dropout=0.1)
    terms = {
        "next_token": Term(NextToken()),
        "layerwise": Term(Layerwise(), 0.5),
        "logits_kd": Term(LogitsKD(temperature=2.0)),
        "relation": Term(AttentionRelation("cosine"), balance=Balance(every=3)),
    }
    manager = ObjectiveManager(terms)
    phases = [Phase("a", 0.3, {"logits_kd": 0.0}), Phase("b", 1.0, {"logits_kd": 2.0})]
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        if position.step == kill_at + 1:
            os.kill(os.getpid(), signal.SIGKILL)

    result = run(
        student, ToyStream(), optimizer, manager,
        config=LoopConfig(micro_batch=2, accumulation=2, state_dir=directory, save_every=5, identity="toy"),
        budget=Budget(tokens=steps * 4 * 24),
        teacher=LocalTeacher(lambda: toy_model(1), forward, student),
        curriculum=Curriculum(manager.base_weights, phases, "linear"),
        schedule=Schedule("cosine", warmup_ratio=0.2),
        warmup=StrengthWarmup("linear", 0.8),
        on_step=watch,
    )  # fmt: skip
    digest = hashlib.sha256()
    for name, parameter in student.named_parameters():
        digest.update(parameter.detach().numpy().tobytes())
        for key, value in sorted(optimizer.state[parameter].items()):
            digest.update(f"{name} {key}".encode() + value.numpy().tobytes())
    position = result.position
    figures = {k: v for k, v in result.figures.items() if "second" not in k and "ternary" not in k}
    digest.update(repr(sorted(figures.items())).encode())
    print(
        digest.hexdigest(), position.step, position.tokens, position.sequences, position.norm_average,
        quant_strength(student).value, manager.balance.factor("relation"), torch.rand(1).item(),
    )  # fmt: skip


if __name__ == "__main__":
    for directory in sys.argv[3:]:
        main(Path(directory), int(sys.argv[1]), int(sys.argv[2]))
