"""The objects of one run, and how they go to disk and come back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.objectives.curriculum import Curriculum, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.teachers.base import Teacher
from wrinklefree.train.checkpoint import load_newest, random_state, save_state, set_random_state
from wrinklefree.train.metrics import TernaryFigures, say
from wrinklefree.train.position import Budget, Position, Schedule


class Stream(Protocol):
    """Sequences by number: the same number is the same sequence, in this run and the next."""

    def batch(self, first_sequence: int, size: int) -> TokenBatch:
        """Return sequences ``first_sequence`` to ``first_sequence + size``."""
        ...


@runtime_checkable
class MixedStream(Stream, Protocol):
    """A stream of several sources whose shares may change; it has a state beyond its position."""

    def set_weights(self, weights: Sequence[float], position: int) -> None:
        """Change the shares from sequence ``position`` on."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Companion(Protocol):
    """Something that goes along with the steps of a run and has a state: saliency, QK-clip, influence.

    ``name`` is its place in the checkpoint. Figures that it returns are logged with the step's own.
    """

    @property
    def name(self) -> str: ...

    def before_step(self, position: Position, progress: float) -> None:
        """Prepare the step to come; the data, the strength and the learning rate are set already."""
        ...

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Act on the parameters the optimizer has just changed; not called for a step that was skipped."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class LoopConfig:
    """``micro_batch`` sequences in one forward of one process, ``accumulation`` forwards in one step.

    ``clip_norm`` None leaves gradients alone. ``max_nonfinite``: so many skipped steps in a row end the run.
    ``keep_last`` states stay in ``state_dir``, written every ``save_every`` steps and at the end; they resume only
    under the same ``identity``. ``source_names``: of the stream's sources, as a curriculum's mixtures name them.
    """

    micro_batch: int = 8
    accumulation: int = 1
    clip_norm: float | None = 1.0
    max_nonfinite: int = 5
    log_every: int = 1
    ternary_every: int = 50
    state_dir: Path | None = None
    save_every: int | None = None
    keep_last: int = 2
    identity: str = ""
    source_names: tuple[str, ...] = ()


class StudentModule(nn.Module):
    """Lets Fabric wrap student and objectives as one forward: its precision and its gradient hooks cover both."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Tensor]) -> Tensor:
        return function(self.model)


@dataclass
class Session:
    """What one step needs; built once by `run`."""

    student: nn.Module
    module: nn.Module
    stream: Stream
    optimizer: torch.optim.Optimizer
    manager: ObjectiveManager
    config: LoopConfig
    budget: Budget
    teacher: Teacher | None
    curriculum: Curriculum
    schedule: Schedule
    warmup: StrengthWarmup
    fabric: Fabric
    companions: Sequence[Companion] = ()
    position: Position = field(default_factory=Position)
    ternary: TernaryFigures = field(default_factory=TernaryFigures)
    low_share_said: set[str] = field(default_factory=set)
    mixture: tuple[float, ...] = ()

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes."""
        if self.fabric.world_size == 1:
            return value
        total = self.fabric.all_reduce(value, reduce_op="sum")
        assert isinstance(total, Tensor)
        return total

    def set_mixture(self, data: Mapping[str, float]) -> None:
        """Give the stream the curriculum's shares, when they changed by a visible amount (each change is kept)."""
        weights = tuple(round(data.get(name, 0.0), 2) for name in self.config.source_names)
        if data and weights != self.mixture:
            assert isinstance(self.stream, MixedStream)
            self.stream.set_weights(weights, self.position.sequences)
            self.mixture = weights

    def strength(self) -> float:
        """Return the student's lambda, 0 when it has no ternary layer."""
        return quant_strength(self.student).value if next(bit_linears(self.student), None) else 0.0


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``stopped`` is "budget" or "interrupted"; ``figures`` are those of its last step."""

    stopped: str
    position: Position
    figures: Mapping[str, float]


def save(session: Session) -> int:
    """Save the state (the first process writes) and return the step."""
    config = session.config
    if config.state_dir is not None and session.fabric.global_rank == 0:
        state = {
            "identity": config.identity,
            "position": session.position.state_dict(),
            "student": session.student.state_dict(),
            "optimizer": session.optimizer.state_dict(),
            "objectives": session.manager.state_dict(),
            "lambda": session.strength(),
            "random": random_state(),
            "companions": {each.name: each.state_dict() for each in session.companions},
            "mixture": session.mixture,
            "data": session.stream.state_dict() if isinstance(session.stream, MixedStream) else None,
        }
        save_state(config.state_dir, session.position.step, state, config.keep_last)
    session.fabric.barrier()
    return session.position.step


def resume(session: Session) -> None:
    """Take up the newest whole state in the state directory, if there is one.

    Raises: InputError when it belongs to another recipe.
    """
    directory = session.config.state_dir
    if directory is None:
        return
    state = load_newest(directory, say)
    if state is None:
        return
    if state["identity"] != session.config.identity:
        raise InputError(
            f"{directory}: holds the state of a run with another recipe; choose another output directory, "
            "or remove it to start anew"
        )
    session.student.load_state_dict(state["student"])
    session.optimizer.load_state_dict(state["optimizer"])
    session.manager.load_state_dict(state["objectives"])
    session.position = Position.from_state(state["position"])
    if next(bit_linears(session.student), None):
        quant_strength(session.student).value = state["lambda"]
    set_random_state(state["random"])
    for each in session.companions:
        each.load_state_dict(state["companions"][each.name])
    session.mixture = state["mixture"]
    if isinstance(session.stream, MixedStream):
        session.stream.load_state_dict(state["data"])
    say(f"Resuming after step {session.position.step} ({session.position.tokens} tokens) from {directory}.")
