"""One training run of the comparison in this directory: a 135M-parameter model made ternary, an arm, a seed.

    python benchmarks/recovery/run.py SOURCE CALIBRATED OUT.json --arm ARM --seed S [--steps 300]

SOURCE is the original model (GGUF file or directory), CALIBRATED what ``wf convert SOURCE CALIBRATED`` wrote.
Every arm learns from the same sequences in the same order for a seed, by the same loop, for the same number of
tokens; embeddings and head stay as they are. The loss on held-out documents is measured at full quantisation, in
float32 activations, before, during and after.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from wrinklefree.artifact.files import write_bytes
from wrinklefree.data.build import DataConfig, build_data
from wrinklefree.eval.loss import held_out_loss, torch_logits
from wrinklefree.eval.text import EvaluationText, from_packed
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.models.precision import fast_matmul_dtype
from wrinklefree.objectives import Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.curriculum import Curriculum, Phase, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.quant.bitlinear import full_strength, held_codes
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.loop import run
from wrinklefree.train.memory import keep_freed_memory
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig
from wrinklefree.train.student import text_encoder


@dataclass(frozen=True)
class Arm:
    """``start``: naive (absmean rounding) or calibrated. ``strength``: share of the run in which lambda rises.

    ``layerwise``: share of the run that is Stage 1.9. The rest: what the optimizer is, and its rate.
    """

    start: str = "naive"
    strength: float = 0.0
    layerwise: float = 0.0
    optimizer: Mapping[str, Any] = ()  # type: ignore[assignment]


ADAMW = {"kind": "adamw", "lr": 3e-4}
BASE = Arm(optimizer=ADAMW)
ARMS: dict[str, Arm] = {
    "naive": BASE,
    "naive-lambda": replace(BASE, strength=1 / 3),
    "naive-stage1.9": replace(BASE, layerwise=1 / 3),
    "calibrated": replace(BASE, start="calibrated"),
    # The update of this scaling has the size of AdamW's, so the same rate is the fair first guess. Five
    # iterations in float32 would take seven times as long as the rest of a step of this size.
    "naive-muon": replace(BASE, optimizer={"kind": "muon", "lr": 3e-4, "muon_steps": 3, "muon_dtype": "bfloat16"}),
    # The same: with a rank of a quarter of the matrix its update is half of AdamW's, and 4 = 2 squared makes up for it.
    "naive-apollo": replace(BASE, optimizer={"kind": "apollo", "lr": 3e-4, "apollo_scale": 4.0}),
}


def main() -> None:
    arguments = _arguments()
    torch.manual_seed(arguments.seed)
    keep_freed_memory()
    arm = ARMS[arguments.arm]
    optimizer = {**arm.optimizer, **({"lr": arguments.lr} if arguments.lr else {})}
    original, tokenizer = load_source(arguments.source, torch.float32)
    data = build_data(DataConfig(sequence_length=arguments.sequence, seed=arguments.seed), text_encoder(tokenizer))
    text = from_packed(data.held_out, "python-docs, held-out topics").limited(arguments.check_tokens)
    student = _student(arm, arguments, original)
    dtype, why = fast_matmul_dtype()
    teacher = LocalTeacher(lambda: copy.deepcopy(original).to(dtype), forward, student)
    losses = {"teacher": loss_of(original, text), "0": loss_of(student, text)}
    curve: list[dict[str, float]] = []
    started = time.monotonic()

    def on_step(position: Position, figures: Mapping[str, float]) -> None:
        curve.append({name: figures[name] for name in ("loss", "next_token/value", "lambda", "lr", "grad_norm")})
        if position.step % arguments.check_every == 0:
            loss = losses[str(position.step)] = loss_of(student, text)
            student.train()
            print(f"{arguments.arm} seed {arguments.seed} step {position.step}: {loss:.3f}", flush=True)

    manager, curriculum = _objectives(arm)
    config = OptimizerConfig(weight_decay=0.0, scale_lr=0.3, norm_lr=3.0, **optimizer)
    run(
        student,
        data.stream,
        build_optimizer(student, config),
        manager,
        config=LoopConfig(micro_batch=arguments.batch, ternary_every=0),
        budget=Budget(tokens=arguments.steps * arguments.batch * arguments.sequence),
        teacher=teacher,
        curriculum=curriculum,
        schedule=Schedule("linear", warmup_ratio=0.1),
        warmup=StrengthWarmup("linear" if arm.strength else "constant", arm.strength),
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        on_step=on_step,
    )
    losses[str(arguments.steps)] = loss_of(student, text)
    report = {
        "arm": arguments.arm, **asdict(arm), "optimizer": optimizer, "seed": arguments.seed, "steps": arguments.steps,
        "tokens_per_step": arguments.batch * arguments.sequence, "held_out_tokens": text.num_scored, "losses": losses,
        "seconds": time.monotonic() - started, "products": why, "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(), "curve": curve,
    }  # fmt: skip
    write_bytes(arguments.out, json.dumps(report, indent=1).encode())


def loss_of(model: nn.Module, text: EvaluationText) -> float:
    """Return the loss on the held-out text in nats per token."""
    model.eval()
    with full_strength(model), held_codes(model):
        return held_out_loss(torch_logits(model), text).loss


def _student(arm: Arm, arguments: argparse.Namespace, original: nn.Module) -> nn.Module:
    if arm.start == "calibrated":
        student = load_checkpoint(str(arguments.calibrated), torch.float32)[0]
    else:
        student = copy.deepcopy(original)
        convert_model(student, TernarySpec())
    for name in ("model.embed_tokens", "lm_head"):
        student.get_submodule(name).requires_grad_(False)
    return student


def _objectives(arm: Arm) -> tuple[ObjectiveManager, Curriculum]:
    """Stage 1.9 has the weights of its recipe; what follows it, and every other arm, distils logits alone."""
    terms = {"logits_kd": Term(LogitsKD(temperature=1.0)), "next_token": Term(NextToken(), 0.0)}
    phases: tuple[Phase, ...] = ()
    if arm.layerwise:
        terms["layerwise"] = Term(Layerwise("mse_normalized"), 0.0)
        first = {"layerwise": 0.5, "next_token": 0.25, "logits_kd": 0.25}
        phases = (Phase("stage 1.9", arm.layerwise, first), Phase("stage 3", 1.0))
    manager = ObjectiveManager(terms)
    return manager, Curriculum(manager.base_weights, phases)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("calibrated", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--arm", choices=ARMS, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=1, help="sequences of a step")
    parser.add_argument("--sequence", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--lr", type=float, help="another peak rate than the arm's")
    parser.add_argument("--check-every", type=int, default=75)
    parser.add_argument("--check-tokens", type=int, default=2048)
    return parser.parse_args()


if __name__ == "__main__":
    main()
