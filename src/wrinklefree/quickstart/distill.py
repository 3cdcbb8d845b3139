"""The distillation of the quickstart: a little of Stage 1.9 (hidden states), then logits, as time allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from wrinklefree.data.stream import PackedStream
from wrinklefree.models.forward import forward
from wrinklefree.models.precision import fast_matmul_dtype
from wrinklefree.models.subln import decoder_layers
from wrinklefree.objectives.curriculum import Curriculum, Phase
from wrinklefree.objectives.layerwise import Layerwise
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.quickstart.settings import Settings
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.compiled import compile_layers
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig

# Adam's first steps move every weight by the full rate in the direction of one batch. With 5 % of warm-up the loss
# jumped from 1.5 to 3.9 nats and took half the run to come back; with a quarter it falls from the first step on.
_WARMUP = 0.25


@dataclass
class Distillation:
    """``curve``: one entry a step. ``finished`` is false when Ctrl-C ended it early."""

    finished: bool
    steps: int
    tokens: int
    seconds: float
    dtype: str
    curve: list[dict[str, float]] = field(default_factory=list)


def distill(
    student: nn.Module,
    original: nn.Module,
    stream: PackedStream,
    settings: Settings,
    seconds: float,
    show: Callable[[float, str], None],
) -> Distillation:
    """Train ``student`` in place on the distributions of ``original`` for ``seconds``; embeddings and head stay.

    T = 1 and the forward divergence: the student learns the whole distribution, not the text.
    """
    dtype, why = fast_matmul_dtype()
    student.requires_grad_(True)
    for module in (student.get_submodule("model.embed_tokens"), student.get_submodule("lm_head")):
        module.requires_grad_(False)
    teacher = LocalTeacher(lambda: copy.deepcopy(original).to(dtype), forward, student)
    terms = {
        "logits_kd": Term(LogitsKD(temperature=1.0)),
        "layerwise": Term(Layerwise("mse_normalized"), settings.layerwise_weight),
    }
    manager = ObjectiveManager(terms, monitor=())
    curriculum = Curriculum(
        manager.base_weights,
        (
            Phase("stage 1.9", settings.layerwise_share, {"layerwise": settings.layerwise_weight}),
            Phase("stage 3", 1.0, {"layerwise": 0.0}),
        ),
    )
    config = OptimizerConfig(
        lr=settings.learning_rate, weight_decay=0.0, scale_lr=settings.scale_rate, norm_lr=settings.norm_rate
    )
    layers = decoder_layers(student)
    if dtype == torch.bfloat16:
        wants = [name for term in terms.values() for name in term.objective.needs.states]
        compile_layers(student, "fused", wants, (), lambda: None)
    curve: list[dict[str, float]] = []

    def on_step(position: Position, figures: Mapping[str, float]) -> None:
        curve.append({"step": position.step, "tokens": position.tokens, **_kept(figures)})
        show(figures["progress"], f"step {position.step}, {position.tokens} tokens, loss {figures['loss']:.3f}")

    result = run(
        student,
        stream,
        build_optimizer(student, config),
        manager,
        config=LoopConfig(micro_batch=settings.batch_sequences, ternary_every=0),
        budget=Budget(seconds=seconds),
        teacher=teacher,
        curriculum=curriculum,
        schedule=Schedule("linear", warmup_ratio=_WARMUP),
        precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true",
        on_step=on_step,
    )
    for layer in layers:
        vars(layer).pop("forward", None)  # the fused one
    student.requires_grad_(True)
    position = result.position
    return Distillation(result.stopped == "budget", position.step, position.tokens, position.seconds, why, curve)


def _kept(figures: Mapping[str, float]) -> dict[str, Any]:
    return {name: figures[name] for name in ("loss", "lr", "grad_norm", "seconds") if name in figures}
