"""One stage of training: from a recipe to a checkpoint directory.

OUT/config.json, model.safetensors, tokenizer.json ...   the checkpoint, when the stage is finished
    recipe.yaml     every value of the recipe as it was resolved
    metrics.jsonl   figures of every step
    summary.json    how the run stands, and how often something went wrong
    audit/          what went wrong, one file each
    run.json        the id under which a tracker knows the run
    state/          the training state, for resuming
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.data.supervised import SupervisedData
from wrinklefree.errors import InputError, TrainingError
from wrinklefree.models.io import locate_source, save_checkpoint
from wrinklefree.objectives.manager import ObjectiveManager
from wrinklefree.optim.build import build_optimizer
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.teachers.base import Teacher
from wrinklefree.train.audit import Summary, first_speaks, note, open_summary, say, write_event
from wrinklefree.train.batch_finder import find_batch
from wrinklefree.train.checkpoint import peek
from wrinklefree.train.companions import build_companions
from wrinklefree.train.compiled import checkpoint_layers, compile_layers
from wrinklefree.train.compose import to_yaml
from wrinklefree.train.diffusion import banned_token, views_of
from wrinklefree.train.held_out import held_out_figures
from wrinklefree.train.loop import run
from wrinklefree.train.memory import keep_freed_memory
from wrinklefree.train.metrics import open_metrics
from wrinklefree.train.naming import run_id, run_name
from wrinklefree.train.parallel import (
    Group,
    attention_kernel,
    build_fabric,
    check_sharded,
    gathered_state,
    is_sharded,
    wrap,
)
from wrinklefree.train.peers import Peers, launch
from wrinklefree.train.plan import dry_run
from wrinklefree.train.position import Position
from wrinklefree.train.probe import Probe
from wrinklefree.train.products import products_summary
from wrinklefree.train.recipe import BatchRecipe, LogRecipe, Recipe
from wrinklefree.train.remote import Remote
from wrinklefree.train.session import Companion, LoopConfig, RunResult
from wrinklefree.train.student import Student, build_student, is_converted, monitored
from wrinklefree.train.teaching import build_teacher, released

_SUMMARY_SECONDS = 30.0


@dataclass(frozen=True)
class StageResult:
    """Where the checkpoint is (None when the run was interrupted), and how the run ended."""

    out: Path
    finished: bool
    result: RunResult


def train(
    recipe: Recipe,
    *,
    out: Path | None = None,
    on_step: Callable[[Position, Mapping[str, float]], None] | None = None,
) -> StageResult:
    """Run a recipe to its end, or resume it, in ``out`` (default: the recipe's, then runs/STAGE-IDENTITY).

    Raises: InputError when the recipe and what it names do not fit, TrainingError when training diverges.
    """
    keep_freed_memory()
    out = out or Path(recipe.out or f"runs/{recipe.stage}-{recipe.identity}")
    if recipe.model.source and not is_converted(recipe.model.source):
        locate_source(recipe.model.source)  # a wrong name must not leave a directory behind
    _claim(out, recipe)
    fabric = build_fabric(recipe.device)
    launch(fabric)
    first_speaks(fabric.global_rank)
    about = {"run": run_name(recipe), "stage": recipe.stage, "identity": recipe.identity}
    with open_summary(out, about) as summary, Peers(fabric, lambda message: _lost(summary, message)):
        result = _run(recipe, out, fabric, summary, on_step)
    return StageResult(out, result.stopped == "budget", result)


def _run(
    recipe: Recipe,
    out: Path,
    fabric: Fabric,
    summary: Summary,
    on_step: Callable[[Position, Mapping[str, float]], None] | None,
) -> RunResult:
    for line in dry_run(recipe).lines():
        say(line)
    group = Group(fabric, separate=_separate(recipe, out, fabric))
    remote = _remote(recipe, out, fabric, group)
    torch.manual_seed(recipe.seed)
    student = build_student(recipe)
    check_dtype(student.model, recipe.model.dtype)
    info = student.info
    manager = ObjectiveManager(
        recipe.objectives,
        monitored(recipe),
        views=views_of(recipe, info),
        banned=banned_token(info),
        gradient_share_every=recipe.log.gradient_share_every,
    )
    teacher = build_teacher(recipe, student, fabric.device) if manager.taught else None
    if recipe.device.gradient_checkpointing:
        checkpoint_layers(student.model)
    probe = _probe(recipe, student, manager, teacher, fabric)
    if recipe.batch.find:
        recipe = replace(recipe, batch=_found_batch(recipe.batch, out / "state", probe, Group(fabric)))
    companions = build_companions(recipe, student.model, student.data)  # type: ignore[arg-type]
    compiled = recipe.device.compile != "none" and _compile(recipe, probe, companions)
    probe.end()
    module = wrap(student.model, fabric)
    if is_sharded(student.model) and manager.balance.measures_shares:
        raise InputError("log.gradient_share_every, balance.kind=share: need a student that is not sharded")
    optimizer = build_optimizer(student.model, recipe.optimizer)
    check_sharded(student.model, recipe.optimizer.kind, companions)
    log, first = recipe.log, fabric.global_rank == 0
    identity = run_id(out) if first else None
    with (
        open_metrics(
            out, run_name(recipe), recipe.resolved(), **_trackers(log), enabled=first, run_id=identity
        ) as metrics,
        released(teacher),
        attention_kernel(fabric, recipe.device.precision, recipe.data.sequence_length),
    ):
        result = run(
            student.model,
            student.data.stream,
            optimizer,
            manager,
            config=_loop_config(recipe, out, plain=not compiled, separate=group.separate),
            budget=recipe.run_budget,
            teacher=teacher,
            curriculum=recipe.run_curriculum,
            schedule=recipe.schedule,
            warmup=recipe.run_warmup,
            companions=companions,
            metrics=metrics,
            fabric=fabric,
            module=module,
            on_save=(lambda state: remote.push(state, group)) if remote else None,
            on_step=_watched(summary, on_step),
        )
    summary.see(result.position, result.figures)
    if result.stopped == "budget":
        weights = gathered_state(student.model) if is_sharded(student.model) else None
        if first:
            try:
                _finish(recipe, student, result, out, weights)
            except InputError as error:
                raise TrainingError(
                    f"training is done, but its checkpoint could not be written: {error}; the state in {out / 'state'} "
                    "is whole, and the same command writes the checkpoint from it"
                ) from error
    if first:
        summary.write("COMPLETED" if result.stopped == "budget" else "INTERRUPTED")
        if remote and result.stopped == "budget":
            remote.keep(out)
    fabric.barrier()  # the launcher ends the others when the first process ends
    return result


def _trackers(log: LogRecipe) -> dict[str, Any]:
    return {"tracker": log.tracker, "project": log.project, "group": log.group, "tags": log.tags}


def _separate(recipe: Recipe, out: Path, fabric: Fabric) -> bool:
    """Return whether the run's machines have each their own ``out``.

    Raises: InputError when they have, and there is no remote place where their parts of a state come together.
    """
    if recipe.device.nodes == 1:
        return False
    group = Group(fabric)
    mark = out / f".seen-{fabric.broadcast(secrets.token_hex(8))}"
    if group.rank == 0:
        mark.touch()
    fabric.barrier()
    separate = not group.agree(mark.exists())
    if group.rank == 0:
        mark.unlink()
    if separate and recipe.sync.url is None:
        raise InputError(
            f"device.nodes={recipe.device.nodes}: the machines do not see each other's {out}; choose a directory that "
            "they share, or give sync.url, where their parts of a state come together"
        )
    return separate


def _remote(recipe: Recipe, out: Path, fabric: Fabric, group: Group) -> Remote | None:
    """Check the remote place, and take the newest state from there when this machine has none."""
    if recipe.sync.url is None:
        return None
    remote = Remote(recipe.sync, f"{recipe.stage}-{recipe.identity}")
    if group.rank == 0:
        remote.check()  # two at once would take each other's probe away
    fabric.barrier()
    if group.keeps_files:
        remote.pull(out / "state", group.separate)
    fabric.barrier()
    return remote


def _watched(
    summary: Summary, on_step: Callable[[Position, Mapping[str, float]], None] | None
) -> Callable[[Position, Mapping[str, float]], None]:
    """Return what is called after each step: the summary is kept up to date, now and then."""
    written = time.monotonic()

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        nonlocal written
        summary.see(position, figures)
        if time.monotonic() - written > _SUMMARY_SECONDS:
            summary.write("RUNNING")
            written = time.monotonic()
        if on_step:
            on_step(position, figures)

    return watch


def _lost(summary: Summary, message: str) -> None:
    note("training_failed", message, printed=True)
    summary.write("FAILED")


def check_dtype(model: nn.Module, dtype: str) -> None:
    """Raise InputError when a floating parameter is not in the configured dtype (scales of BitLinear stay float32)."""
    for name, parameter in model.named_parameters():
        expected = torch.float32 if name.endswith(".weight_scale") else getattr(torch, dtype)
        if parameter.is_floating_point() and parameter.dtype != expected:
            raise InputError(f"{name}: is {parameter.dtype}, the recipe says model.dtype={dtype}")


def _claim(out: Path, recipe: Recipe) -> None:
    """Make the output directory, or recognise one of this recipe's own runs in it."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    # Processes that were started together all come here; one may be writing the file while another looks.
    foreign = "recipe.yaml" not in there and any(not name.startswith(".recipe.yaml.") for name in there)
    if foreign or (out.exists() and not out.is_dir()):
        raise InputError(f"{out}: exists already and is no training run; choose another output directory")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror})") from error
    text = f"# identity {recipe.identity}\n{to_yaml(recipe)}"
    kept = out / "recipe.yaml"
    if kept.is_file() and kept.read_text(encoding="utf-8").partition("\n")[0] != text.partition("\n")[0]:
        message = f"{out}: holds a run of another recipe; choose another output directory, or remove it"
        write_event(out, "resume_config_mismatch", message)
        raise InputError(message)
    write_bytes(kept, text.encode())


def _probe(
    recipe: Recipe, student: Student, manager: ObjectiveManager, teacher: Teacher | None, fabric: Fabric
) -> Probe:
    if recipe.batch.find or recipe.device.compile != "none":
        student.model.to(fabric.device)
    return Probe(
        student.model, student.data.stream, manager, recipe.run_curriculum, teacher, fabric.device,
        blends=recipe.strength.kind != "constant", hold=recipe.device.holds_codes, autocast=fabric.autocast,
    )  # fmt: skip


def _found_batch(batch: BatchRecipe, states: Path, probe: Probe, group: Group) -> BatchRecipe:
    """Divide a step's sequences anew; a resumed run keeps the micro-batch of the state it resumes from."""
    sequences = batch.micro_batch * batch.accumulation
    kept = peek(states, "batch") if group.rank == 0 else None
    micro_batch = group.first(int(kept[0]) if kept and sequences % int(kept[0]) == 0 else 0)
    if not micro_batch:
        found = find_batch(probe, sequences, batch.memory_gib, group.size)
        say(found.line())
        micro_batch = group.least(found.micro_batch)
    return replace(batch, micro_batch=micro_batch, accumulation=sequences // micro_batch)


def _compile(recipe: Recipe, probe: Probe, companions: list[Companion]) -> bool:
    wants = [name for term in recipe.objectives.values() for name in term.objective.needs.states]
    micro_batch = recipe.batch.micro_batch
    return compile_layers(
        probe.student, recipe.device.compile, wants, companions, lambda: probe.run(micro_batch, batches=1)
    )


def _loop_config(recipe: Recipe, out: Path, plain: bool, separate: bool) -> LoopConfig:
    return LoopConfig(
        micro_batch=recipe.batch.micro_batch,
        accumulation=recipe.batch.accumulation,
        clip_norm=recipe.guard.clip_norm,
        max_nonfinite=recipe.guard.max_nonfinite,
        log_every=recipe.log.log_every,
        ternary_every=recipe.log.ternary_every,
        state_dir=out / "state",
        save_every=recipe.checkpoint.save_every,
        keep_last=recipe.checkpoint.keep_last,
        identity=recipe.identity,
        hold_codes=plain or recipe.device.holds_codes,
        separate=separate,
        source_names=tuple(recipe.data.sources),
    )


def _finish(
    recipe: Recipe, student: Student, result: RunResult, out: Path, weights: Mapping[str, Tensor] | None
) -> None:
    """Write the checkpoint beside and move its files in; config.json last, because it is what makes a checkpoint.

    ``weights``: gathered, of a sharded student.
    """
    info = student.info and replace(
        student.info,
        stage=recipe.stage,
        strength=quant_strength(student.model).value if any(True for _ in bit_linears(student.model)) else 1.0,
        teacher=student.teacher,
        tokens_seen=student.info.tokens_seen + result.position.tokens,
        recipe_hash=recipe.identity,
    )
    written = out / ".checkpoint"
    shutil.rmtree(written, ignore_errors=True)
    save_checkpoint(student.model, student.tokenizer, written, info, state=weights)  # type: ignore[arg-type]
    for path in sorted(written.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(out / path.name)
    written.rmdir()
    if isinstance(student.data, SupervisedData) and weights is not None:
        say("The held-out examples were not scored, because the student is sharded over processes.")
    elif isinstance(student.data, SupervisedData):
        figures = held_out_figures(student.model, student.data)
        write_bytes(out / "held_out.json", json_bytes(figures))
        say("Held out: " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()) + ".")
    if products := products_summary(student.model):
        say(products)
    say(f"Finished: {result.position.step} steps, {result.position.tokens} tokens; checkpoint in {out}.")
