"""The objects of one run, and how they go to disk and come back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError, TrainingError
from wrinklefree.objectives.curriculum import Curriculum, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.teachers.base import Teacher
from wrinklefree.train.audit import note, say
from wrinklefree.train.checkpoint import (
    PREFIX,
    Stored,
    load_state,
    newest,
    random_state,
    read_all,
    save_state,
    set_random_state,
    states,
    step_of,
)
from wrinklefree.train.metrics import TernaryFigures
from wrinklefree.train.parallel import Group, is_sharded
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
    under the same ``identity``. ``hold_codes``: ternarise once for all micro-batches of a step.
    ``separate``: see `parallel.Group`.
    ``source_names``: of the stream's sources, as a curriculum's mixtures name them.
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
    hold_codes: bool = True
    separate: bool = False
    source_names: tuple[str, ...] = ()


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
    on_save: Callable[[Path], None] | None = None
    position: Position = field(default_factory=Position)
    ternary: TernaryFigures = field(default_factory=TernaryFigures)
    low_share_said: set[str] = field(default_factory=set)
    mixture: tuple[float, ...] = ()

    @property
    def group(self) -> Group:
        """Return the processes of this run."""
        return Group(self.fabric, self.config.separate)

    @property
    def sharded(self) -> bool:
        """Return whether each process has only some rows of the parameters."""
        return is_sharded(self.student)

    def sum_over_processes(self, value: Tensor) -> Tensor:
        """Return the sum of ``value`` over all processes."""
        return self.group.sum(value)

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
    """Save the state and return the step; every process must call it.

    Raises: TrainingError when it cannot be written; the states before it are intact.
    """
    config = session.config
    if config.state_dir is None:
        return session.position.step
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
        "batch": [config.micro_batch, config.accumulation, session.fabric.world_size],
    }
    try:
        path = save_state(config.state_dir, session.position.step, state, config.keep_last, session.group)
    except InputError as error:
        kept = states(config.state_dir)
        left = f"the state in {kept[-1]} is intact and the same command resumes from it" if kept else "none is saved"
        raise TrainingError(
            f"the state after step {session.position.step} could not be saved, so training stops: {error}; {left}"
        ) from error
    if session.on_save and (session.group.rank == 0 or session.config.separate):
        session.on_save(path)
    return session.position.step


def resume(session: Session) -> None:
    """Take up the newest whole state in the state directory, if there is one; every process must call it.

    Raises: InputError when it belongs to another recipe.
    """
    directory, group = session.config.state_dir, session.group
    if directory is None:
        return
    step = _newest_everywhere(directory, group)
    if step < 0:
        return
    state = load_state(directory / f"{PREFIX}{step:08d}", lazy=True, check=False)
    if state["identity"] != session.config.identity:
        message = (
            f"{directory}: holds the state of a run with another recipe; choose another output directory, "
            "or remove it to start anew"
        )
        note("resume_config_mismatch", message, printed=True)
        raise InputError(message)
    place(state.pop("student"), state.pop("optimizer"), session.student, session.optimizer)
    state = read_all(state)
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


def _newest_everywhere(directory: Path, group: Group) -> int:
    """Return the step of the newest state that every machine has whole, -1 when there is none.

    One process of each file system looks and checks; the others take what it found.
    """
    below = None
    while True:
        path = None
        if group.keeps_files:
            path = newest(directory, lambda line: note("checkpoint_corrupted", line), below)
        own = -1 if path is None else step_of(path)
        if not group.separate:
            return group.first(own)
        least = group.least(own if group.keeps_files else sys.maxsize)
        if least < 0 or group.agree(not group.keeps_files or own == least):
            return least
        below = least + 1


def place(
    weights: Mapping[str, Any], moments: dict[str, Any], student: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Load the stored state of ``student`` and ``optimizer``, each process its own rows where they are sharded."""
    ours = student.state_dict()
    student.load_state_dict({n: v.like(ours[n]) if n in ours else read_all(v) for n, v in weights.items()})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def placed(index: int, value: Any) -> Any:
        if not isinstance(value, Stored):
            return read_all(value)
        parameter = parameters[index]
        return value.like(parameter) if value.shape() == tuple(parameter.shape) else value.read()

    optimizer.load_state_dict({
        **read_all({key: value for key, value in moments.items() if key != "state"}),
        "state": {i: {k: placed(i, v) for k, v in kept.items()} for i, kept in moments["state"].items()},
    })  # fmt: skip
