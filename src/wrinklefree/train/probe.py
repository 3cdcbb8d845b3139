"""One micro-batch forward and backward before training, to see that it works and what it takes; it leaves no trace.

Everything that training may have active at once is active: every objective at its largest weight over the phases, the
teacher, the blend of latents and codes, and the gradients of an earlier micro-batch. There is no optimizer step.
Generators, gradients, the balance of objectives, strength and mode of the student are as before; the teacher, once
loaded, stays until `Probe.end`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wrinklefree.objectives.curriculum import Curriculum
from wrinklefree.objectives.manager import ObjectiveManager, Tally
from wrinklefree.quant.bitlinear import bit_linears, held_codes, quant_strength
from wrinklefree.teachers.base import Teacher
from wrinklefree.train.session import Stream


@dataclass(frozen=True)
class Probe:
    """What a run will train with. ``blends``: whether the strength is ever between 0 and 1."""

    student: nn.Module
    stream: Stream
    manager: ObjectiveManager
    curriculum: Curriculum
    teacher: Teacher | None
    device: torch.device
    blends: bool = False
    hold: bool = True
    autocast: Callable[[], Any] = nullcontext

    def run(self, micro_batch: int, batches: int = 2) -> None:
        """Do ``batches`` forwards and backwards of ``micro_batch`` sequences."""
        weights = largest_weights(self.curriculum)
        with _untouched(self), held_codes(self.student) if self.hold else nullcontext():
            manager = copy.deepcopy(self.manager)
            batch = self.stream.batch(0, micro_batch).to(self.device).numbered(0)
            counts = {name: float(n) for name, n in manager.counts(batch, weights, True).items()}
            for _ in range(batches):
                taught = None
                if self.teacher is not None and manager.needs_teacher(weights):
                    taught = self.teacher.forward(batch, manager.teacher_wants(weights))
                with self.autocast():
                    loss = manager.loss(self.student, batch, weights, counts, taught, Tally(), True)
                loss.backward()

    def end(self) -> None:
        """Give the teacher's memory back: training loads it when an objective first asks."""
        if self.teacher is not None and self.teacher.loaded:
            self.teacher.release()


def largest_weights(curriculum: Curriculum) -> dict[str, float]:
    """Return every objective's largest weight over the phases: what is ever active is active."""
    ends = [0.0, *(phase.end for phase in curriculum.phases), 1.0]
    # A step curriculum changes right after an end, an interpolated one peaks at it.
    points = [*ends, *(min(end + 1e-9, 1.0) for end in ends), *(max(end - 1e-9, 0.0) for end in ends)]
    weights: dict[str, float] = dict(curriculum.base)
    for point in points:
        for name, weight in curriculum.at(point).weights.items():
            weights[name] = max(weights.get(name, 0.0), weight)
    return weights


@contextmanager
def _untouched(probe: Probe) -> Iterator[None]:
    student, mode = probe.student, probe.student.training
    gradients = [parameter.grad for parameter in student.parameters()]
    student.zero_grad(set_to_none=True)  # or they would be added to
    strength = quant_strength(student) if next(bit_linears(student), None) else None
    before = strength.value if strength else 1.0
    with torch.random.fork_rng():
        try:
            student.train()
            if strength and probe.blends:
                strength.value = 0.5
            yield
        finally:
            student.train(mode)
            for parameter, gradient in zip(student.parameters(), gradients, strict=True):
                parameter.grad = gradient
            if strength:
                strength.value = before
                strength.input = None
