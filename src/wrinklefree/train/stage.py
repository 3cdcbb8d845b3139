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

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from wrinklefree.artifact.files import read_json, write_bytes
from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.data.build import TrainingData, build_data
from wrinklefree.data.tokens import TextEncoder
from wrinklefree.errors import InputError
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source, locate_source, save_checkpoint
from wrinklefree.models.low_rank import prepare_low_rank
from wrinklefree.objectives.manager import ObjectiveManager
from wrinklefree.optim.build import build_optimizer
from wrinklefree.quant.bitlinear import bit_linears, quant_strength
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.audit import Summary, first_speaks, note, open_summary, say, write_event
from wrinklefree.train.companions import build_companions
from wrinklefree.train.compose import to_yaml
from wrinklefree.train.diffusion import banned_token, diffusing, match_student, views_of
from wrinklefree.train.loop import run
from wrinklefree.train.memory import keep_freed_memory
from wrinklefree.train.metrics import open_metrics
from wrinklefree.train.naming import run_id, run_name
from wrinklefree.train.parallel import build_fabric, check_sharded, gathered_state, is_sharded, wrap
from wrinklefree.train.peers import Peers, launch
from wrinklefree.train.plan import dry_run
from wrinklefree.train.position import Position
from wrinklefree.train.products import products_summary
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.remote import Remote
from wrinklefree.train.session import LoopConfig, RunResult

_SUMMARY_SECONDS = 30.0
_SUBLN_SEQUENCES = 16  # that measure the gains of subln=identity


@dataclass(frozen=True)
class StageResult:
    """Where the checkpoint is (None when the run was interrupted), and how the run ended."""

    out: Path
    finished: bool
    result: RunResult


@dataclass(frozen=True)
class _Student:
    model: nn.Module
    tokenizer: Any
    info: CheckpointInfo
    teacher: str | None
    data: TrainingData


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
    if recipe.model.source and not _is_converted(recipe.model.source):
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
    remote = _remote(recipe, out, fabric)
    torch.manual_seed(recipe.seed)
    student = _build_student(recipe)
    check_dtype(student.model, recipe.model.dtype)
    info = student.info
    manager = ObjectiveManager(recipe.objectives, views=views_of(recipe, info), banned=banned_token(info))
    module = wrap(student.model, fabric)
    optimizer = build_optimizer(student.model, recipe.optimizer)
    companions = build_companions(recipe, student.model, student.data)
    check_sharded(student.model, recipe.optimizer.kind, companions)
    log, first = recipe.log, fabric.global_rank == 0
    identity = run_id(out) if first else None
    with open_metrics(
        out, run_name(recipe), recipe.resolved(), log.tracker, log.project, enabled=first, run_id=identity
    ) as metrics:
        result = run(
            student.model,
            student.data.stream,
            optimizer,
            manager,
            config=_loop_config(recipe, out),
            budget=recipe.run_budget,
            teacher=_teacher(recipe, student, fabric) if manager.taught else None,
            curriculum=recipe.run_curriculum,
            schedule=recipe.schedule,
            warmup=recipe.run_warmup,
            companions=companions,
            metrics=metrics,
            fabric=fabric,
            module=module,
            on_save=remote.push if remote else None,
            on_step=_watched(summary, on_step),
        )
    summary.see(result.position, result.figures)
    if result.stopped == "budget":
        weights = gathered_state(student.model) if is_sharded(student.model) else None
        if first:
            _finish(recipe, student, result, out, weights)
    if first:
        summary.write("COMPLETED" if result.stopped == "budget" else "INTERRUPTED")
    fabric.barrier()  # the launcher ends the others when the first process ends
    return result


def _remote(recipe: Recipe, out: Path, fabric: Fabric) -> Remote | None:
    """Check the remote place, and take the newest state from there when this machine has none."""
    if recipe.sync.url is None:
        return None
    remote = Remote(recipe.sync, f"{recipe.stage}-{recipe.identity}")
    if fabric.global_rank == 0:
        remote.check()
        remote.pull(out / "state")
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
    if out.exists() and not (out / "recipe.yaml").is_file() and (not out.is_dir() or any(out.iterdir())):
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


def _build_student(recipe: Recipe) -> _Student:
    """Load a converted checkpoint, or load and convert an original model; read the data with its tokenizer."""
    source = recipe.model.source
    if not source:
        raise InputError("model.source: none given; name a model (model=NAME or model=PATH)")
    dtype = getattr(torch, recipe.model.dtype)
    if _is_converted(source):
        for name in ("granularity", "group_size", "subln"):
            if getattr(recipe.model, name) is not None:
                raise InputError(f"model.{name}: nothing would read it, because {source} is converted already")
        model, tokenizer, info = load_checkpoint(source, dtype)
        info = diffusing(recipe, model, tokenizer, info)
        data = build_data(recipe.data_config, _encoder(tokenizer))
        prepare_low_rank(model, recipe.low_rank, _rows(data), original=False, say=say)
        return _Student(model, tokenizer, info, recipe.model.teacher or info.teacher, data)
    model, tokenizer = load_source(source, dtype)
    subln = recipe.model.subln or "identity"
    info = CheckpointInfo(stage="convert", spec=recipe.model.spec, subln=subln, teacher=source)
    info = diffusing(recipe, model, tokenizer, info)
    data = build_data(recipe.data_config, _encoder(tokenizer))
    sequences = _rows(data)(_SUBLN_SEQUENCES) if subln == "identity" else None
    convert_model(model, recipe.model.spec, subln, sequences)
    prepare_low_rank(model, recipe.low_rank, _rows(data), original=True, say=say)
    return _Student(model, tokenizer, info, recipe.model.teacher or source, data)


def _rows(data: TrainingData) -> Callable[[int], Tensor]:
    return lambda count: data.stream.batch(0, count).input_ids


def _is_converted(source: str) -> bool:
    path = Path(source) / "config.json"
    return path.is_file() and "wrinklefree" in read_json(path)


def _encoder(tokenizer: Any) -> TextEncoder:
    """Our own tokenizer, read from the files of a Hugging Face one: BOS exactly once, and the engine's ids."""
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        return TextEncoder.of(Tokenizer.load(Path(directory)))


def _teacher(recipe: Recipe, student: _Student, fabric: Fabric) -> LocalTeacher:
    name = student.teacher
    if not name:
        raise InputError("model.teacher: the checkpoint names no original model; set model.teacher")
    vocabulary = student.tokenizer.get_vocab()

    def load() -> nn.Module:
        say(f"Loading the teacher {name}.")
        dtype = getattr(torch, recipe.model.dtype)
        model, tokenizer = load_checkpoint(name, dtype)[:2] if _is_converted(name) else load_source(name, dtype)
        match_student(model, tokenizer, student.tokenizer, student.info)
        if tokenizer.get_vocab() != vocabulary:
            raise InputError(f"teacher {name}: its tokenizer is not the student's; token ids would not correspond")
        return model

    return LocalTeacher(load, forward, student.model, fabric.device)


def _loop_config(recipe: Recipe, out: Path) -> LoopConfig:
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
        source_names=tuple(recipe.data.sources),
    )


def _finish(
    recipe: Recipe, student: _Student, result: RunResult, out: Path, weights: Mapping[str, Tensor] | None
) -> None:
    """Write the checkpoint beside and move its files in; config.json last, because it is what makes a checkpoint.

    ``weights``: gathered, of a sharded student.
    """
    info = replace(
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
    if products := products_summary(student.model):
        say(products)
    say(f"Finished: {result.position.step} steps, {result.position.tokens} tokens; checkpoint in {out}.")
