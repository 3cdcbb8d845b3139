"""Train a toy in N processes, each parameter's rows divided among them or not, and write what was learned.

Usage: sharded_script.py JSON, the settings of `main` (``kill``: process and step).

Each process writes OUT/RANK.json, the first its weights too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import torch
from lightning.fabric import Fabric
from safetensors.torch import save_file
from train_toys import ToyStream, toy_model

from wrinklefree.models.forward import forward
from wrinklefree.objectives import Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.compiled import checkpoint_layers
from wrinklefree.train.loop import run
from wrinklefree.train.parallel import build_fabric, gathered_state, wrap
from wrinklefree.train.peers import Peers, launch
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.recipe import DeviceRecipe
from wrinklefree.train.session import LoopConfig

GLOBAL_BATCH, LR, CLIP = 8, 1e-2, 0.5


def main(
    processes: int,
    out: str,
    strategy: str = "fsdp",
    steps: int = 3,
    state: str | None = None,
    save_every: int | None = None,
    checkpointing: bool = False,
    micro_batch: int = 2,
    subln: str = "ones",
    learned_scales: bool = False,
    optimizer: str = "sgd",
    kill: tuple[int, int] = (-1, -1),
) -> None:
    fabric = build_fabric(DeviceRecipe("cpu", processes, strategy))  # type: ignore[arg-type]
    launch(fabric)
    with Peers(fabric):
        train(fabric, out, steps, state, save_every, checkpointing, micro_batch, subln, learned_scales, optimizer, kill)


def train(
    fabric: Fabric,
    out: str,
    steps: int,
    state: str | None,
    save_every: int | None,
    checkpointing: bool,
    micro_batch: int,
    subln: str,
    learned_scales: bool,
    optimizer: str,
    kill: tuple[int, int],
) -> None:
    student, teacher = toy_model(1, ternary=True, subln=subln, scales=learned_scales), toy_model(2)
    if checkpointing:
        checkpoint_layers(student)
    terms = {"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD()), "layerwise": Term(Layerwise())}
    module = wrap(student, fabric)
    adamw = build_optimizer(student, OptimizerConfig(lr=LR))
    sgd = torch.optim.SGD(student.parameters(), lr=LR)
    seen: list[tuple[float, float]] = []

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        seen.append((figures["loss"], figures["grad_norm"]))
        if [fabric.global_rank, position.step] == list(kill):
            os.kill(os.getpid(), signal.SIGKILL)

    result = run(
        student, ToyStream(), sgd if optimizer == "sgd" else adamw, ObjectiveManager(terms),
        config=LoopConfig(
            micro_batch=micro_batch, accumulation=GLOBAL_BATCH // micro_batch // fabric.world_size, clip_norm=CLIP,
            state_dir=Path(state) if state else None, save_every=save_every, ternary_every=1, identity="toy",
            keep_last=9),
        budget=Budget(tokens=steps * GLOBAL_BATCH * 24), teacher=LocalTeacher(lambda: teacher, forward),
        schedule=Schedule("constant", warmup_ratio=0.0), fabric=fabric, module=module, on_step=watch,
    )  # fmt: skip
    weights = gathered_state(student)
    where = Path(out)
    where.mkdir(exist_ok=True)
    figures = {key: value for key, value in result.figures.items() if "second" not in key}
    (where / f"{fabric.global_rank}.json").write_text(
        json.dumps({"seen": seen, "figures": figures, "step": result.position.step, "tokens": result.position.tokens})
    )
    if fabric.global_rank == 0:
        weights = {name: tensor.contiguous() for name, tensor in weights.items() if name != "lm_head.weight"}
        save_file(weights, where / "weights.safetensors")
    fabric.barrier()  # the launcher ends the others when the first process ends


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
