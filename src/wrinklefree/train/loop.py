"""The training loop. There is one; a stage is a recipe, a distillation is an objective, a quantiser is a module.

It reads top to bottom: `run` builds nothing, it takes ready objects; `_step` is one optimizer step.

    batches of the step -> tokens counted once -> (teacher) -> objectives -> backward, accumulated -> clip
    -> non-finite guard -> optimizer -> companions -> counters -> figures -> checkpoint

Schedules are functions of progress, the larger of the shares of tokens and of time used up, taken in the middle of
the step for the learning rate (so that neither the first nor the last step is lost to a factor of 0) and at its
beginning for everything else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.objectives.curriculum import Curriculum, Setting, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager, Tally
from wrinklefree.optim.schedules import set_factors
from wrinklefree.quant.bitlinear import bit_linears, held_codes, quant_strength
from wrinklefree.teachers.base import Teacher, TeacherError
from wrinklefree.train.audit import note
from wrinklefree.train.guard import clip, say_low_shares, skip
from wrinklefree.train.interrupt import stop_requested
from wrinklefree.train.metrics import Metrics
from wrinklefree.train.parallel import wrap
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import (
    Companion,
    LoopConfig,
    MixedStream,
    RunResult,
    Session,
    Stream,
    resume,
    save,
)
from wrinklefree.train.teaching import ask_ahead, without_teacher

Precision = Literal["32-true", "bf16-mixed"]


def run(
    student: nn.Module,
    stream: Stream,
    optimizer: torch.optim.Optimizer,
    manager: ObjectiveManager,
    *,
    config: LoopConfig,
    budget: Budget,
    teacher: Teacher | None = None,
    curriculum: Curriculum | None = None,
    schedule: Schedule | None = None,
    warmup: StrengthWarmup | None = None,
    companions: Sequence[Companion] = (),
    metrics: Metrics | None = None,
    fabric: Fabric | None = None,
    module: nn.Module | None = None,
    on_save: Callable[[Path], None] | None = None,
    precision: Precision = "32-true",
    on_step: Callable[[Position, Mapping[str, float]], None] | None = None,
) -> RunResult:
    """Train ``student`` in place until the budget is used up or Ctrl-C; resume from ``config.state_dir`` if it can.

    Ctrl-C (or SIGTERM) ends the step in progress, saves, and says so. The student's strength lambda is left where
    the schedule put it. Without a ``fabric`` it runs on the CPU, with ``precision`` of the student's products (the
    parameters keep their dtype). ``module``: the student as `parallel.wrap` returned it, for a run whose optimizer had
    to be built on sharded parameters.

    Raises: InputError for settings that contradict each other, TrainingError when training diverges.
    """
    fabric = fabric or Fabric(accelerator="cpu", devices=1, precision=precision)
    session = Session(
        student, module or wrap(student, fabric), stream, optimizer, manager, config, budget, teacher,
        curriculum or Curriculum(manager.base_weights), schedule or Schedule(), warmup or StrengthWarmup(), fabric,
        companions, on_save,
    )  # fmt: skip
    if teacher is None and session.curriculum.ever(manager.taught):
        raise InputError(f"objectives {', '.join(manager.taught)} need a teacher; name one (model.teacher)")
    if any(phase.data for phase in session.curriculum.phases) and not isinstance(stream, MixedStream):
        raise InputError("curriculum: its phases name data mixtures, but this stream has a single source")
    for group in optimizer.param_groups:  # of an optimizer that `optim.build` did not make
        group.setdefault("peak_lr", group["lr"])
        group.setdefault("peak_weight_decay", group.get("weight_decay", 0.0))
    resume(session)
    figures: dict[str, float] = {}
    saved = session.position.step
    student.train()
    with stop_requested() as stop:
        # All processes stop after the same step, whichever of them was asked to.
        while session.position.progress(budget) < 1.0 and session.group.agree(not stop.is_set()):
            try:
                figures = _step(session)
            except TeacherError as error:
                raise without_teacher(session, saved, error) from error
            step = session.position.step
            if metrics and fabric.global_rank == 0 and step % config.log_every == 0:
                metrics.log(figures, step)
            if on_step:
                on_step(session.position, figures)
            if config.save_every and step % config.save_every == 0:
                saved = save(session)
        if saved != session.position.step:
            save(session)
    student.eval()
    if session.position.progress(budget) < 1.0:
        where = f"saved in {config.state_dir}; the same command resumes" if config.state_dir else "nothing was saved"
        note("training_interrupted", f"Interrupted after step {session.position.step}: {where}.")
        return RunResult("interrupted", session.position, figures)
    _set_strength(session, session.curriculum.at(1.0), 1.0)
    return RunResult("budget", session.position, figures)


def _step(session: Session) -> dict[str, float]:
    """Do one optimizer step and return its figures."""
    started = time.monotonic()
    position, config, manager = session.position, session.config, session.manager
    progress = position.progress(session.budget)
    setting = session.curriculum.at(progress)
    session.set_mixture(setting.data)
    batches = _micro_batches(session)
    if manager.needs_teacher(setting.weights):
        ask_ahead(session, batches, lambda: _micro_batches(session, ahead=1))
    tokens = session.fabric.world_size * sum(batch.input_ids.numel() for batch in batches)
    strength = _set_strength(session, setting, progress)
    rate = _set_learning_rate(session, setting, position.middle(session.budget, tokens))
    monitor = (position.step + 1) % config.log_every == 0
    for companion in session.companions:
        companion.before_step(position, progress)

    counts = _counts(session, batches, setting.weights, monitor)
    tally = Tally()
    # The parameters stay as they are until the last micro-batch, so ternarising once for all of them is enough. Of a
    # sharded student they would be codes of all its layers, in every process.
    sharded = session.sharded
    hold = config.hold_codes and len(batches) > 1 and not sharded
    with held_codes(session.student) if hold else nullcontext():
        for index, batch in enumerate(batches):
            taught = _taught(session, batch, setting, progress)

            def objective(model: nn.Module, batch: TokenBatch = batch, taught: Any = taught) -> Tensor:
                return manager.loss(model, batch, setting.weights, counts, taught, tally, monitor)

            wait = index < len(batches) - 1 and not sharded  # sharded gradients are always summed, to stay small
            with session.fabric.no_backward_sync(session.module, enabled=True) if wait else nullcontext():  # type: ignore[arg-type]
                # Gradients are averaged over processes, the counts are sums over them.
                session.fabric.backward(session.module(objective) * session.fabric.world_size)
    tally.reduce(session.sum_over_processes)
    figures = manager.report(tally, counts, setting.weights)

    norm = clip(session)
    if math.isfinite(norm) and math.isfinite(figures["loss"]):
        session.optimizer.step()
        position.good_step(norm, config.clip_norm)
        manager.end_step(tally, counts, setting.weights, session.sum_over_processes)
        for companion in session.companions:
            figures |= companion.after_step(position, figures)
    else:
        skip(session, figures, norm, rate)
    session.optimizer.zero_grad(set_to_none=True)

    sequences = session.fabric.world_size * config.micro_batch * config.accumulation
    # A budget in seconds must end every process after the same step.
    elapsed = float(session.sum_over_processes(torch.tensor(time.monotonic() - started))) / session.fabric.world_size
    position.advance(tokens, sequences, elapsed)
    figures |= {
        "lambda": strength, "lr": rate, "grad_norm": norm, "progress": progress, "tokens": position.tokens,
        "tokens_per_second": tokens / elapsed, "seconds": position.seconds, "nonfinite": position.nonfinite,
        "clipped": position.clipped,
    }  # fmt: skip
    if config.ternary_every and (position.step - 1) % config.ternary_every == 0:
        figures |= session.ternary.measure(session.student)
    say_low_shares(session, figures, setting.weights)
    return figures


def _micro_batches(session: Session, ahead: int = 0) -> list[TokenBatch]:
    """The batches of this process in this step; the step's data is the same for any number of processes."""
    size, fabric = session.config.micro_batch, session.fabric
    step = fabric.world_size * size * session.config.accumulation
    firsts = [
        session.position.sequences + ahead * step + (index * fabric.world_size + fabric.global_rank) * size
        for index in range(session.config.accumulation)
    ]
    return [session.stream.batch(first, size).to(fabric.device).numbered(first) for first in firsts]


def _counts(
    session: Session, batches: list[TokenBatch], weights: Mapping[str, float], monitor: bool
) -> dict[str, float]:
    """Tokens of the whole step for each objective, over all micro-batches and processes."""
    counts: dict[str, float] = {}
    for batch in batches:
        for name, count in session.manager.counts(batch, weights, monitor).items():
            counts[name] = counts.get(name, 0) + count
    every = session.sum_over_processes(torch.tensor(list(counts.values()), dtype=torch.float64))
    return dict(zip(counts, every.tolist(), strict=True))


def _taught(session: Session, batch: TokenBatch, setting: Setting, progress: float) -> Any:
    """The teacher's output when an active objective needs it; the teacher is released once none ever will."""
    teacher, manager = session.teacher, session.manager
    if teacher is None:
        return None
    if manager.needs_teacher(setting.weights):
        return teacher.forward(batch, manager.teacher_wants(setting.weights))
    if teacher.loaded and not session.curriculum.ever(manager.taught, progress):
        teacher.release()
    return None


def _set_strength(session: Session, setting: Setting, progress: float) -> float:
    if next(bit_linears(session.student), None) is None:
        return 0.0
    strength = quant_strength(session.student)
    strength.value = session.warmup.at(progress) * setting.strength
    return strength.value


def _set_learning_rate(session: Session, setting: Setting, middle: float) -> float:
    """Set every group's rate and return the highest."""
    rate, decay = session.schedule.factors(middle, session.budget)
    set_factors(session.optimizer, rate * setting.lr_scale, decay)
    return max(float(group["lr"]) for group in session.optimizer.param_groups)
