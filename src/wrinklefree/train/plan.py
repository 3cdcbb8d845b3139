"""What a recipe will take, before anything is loaded: parameters, steps, memory, disk, and on GPUs time and money.

`dry_run` reads a config.json that is on this machine. `plan` also fetches one (no weights) from where the source is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wrinklefree.errors import FormatError, InputError
from wrinklefree.train.footprint import memory_bytes
from wrinklefree.train.gpus import GPUS, Gpu
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.shape import Shape
from wrinklefree.train.storage import disk_bytes, host_bytes

_GIB = 2.0**30
# Of a GPU's memory, what is left free: the allocator's fragments, and what an estimate can be wrong by.
_MARGIN = 0.15
_LARGEST_MICRO_BATCH = 4096


@dataclass(frozen=True)
class DryRun:
    """Sizes of a run. ``parameters`` is None when the source's configuration is not on this machine."""

    resolved: dict[str, Any]
    parameters: int | None
    step_tokens: int
    steps: int | None
    total_tokens: int | None
    memory_gib: dict[str, float]

    def lines(self) -> list[str]:
        """Return the figures for a reader, each with what it follows from."""
        batch, data, device = self.resolved["batch"], self.resolved["data"], self.resolved["device"]
        processes = device["devices"] * device["nodes"]
        count = f"{self.parameters:,}" if self.parameters else "unknown: the source is not on this machine"
        lines = [
            f"parameters      {count}",
            f"tokens per step {self.step_tokens:,} = {batch['micro_batch']} sequences x {batch['accumulation']} "
            f"accumulated x {processes} processes x {data['sequence_length']} tokens",
            f"steps           {'until the time is up' if self.steps is None else f'{self.steps:,}'}",
        ]
        if self.memory_gib:
            parts = ", ".join(f"{name} {size:.2f}" for name, size in self.memory_gib.items() if size)
            lines.append(f"memory (GiB)    {sum(self.memory_gib.values()):.2f} for each process: {parts}")
        return lines


@dataclass(frozen=True)
class GpuPlan:
    """A recipe on one kind of GPU. ``micro_batch``: the largest power of two that fits, None when not even one does.

    ``accumulation`` keeps the step's tokens what the recipe says. ``seconds``, ``dollars``: None when only time bounds
    the run, or no price is known. They follow from an assumed utilisation and are no measurement. ``tokens_for_cap``:
    what the cap on dollars pays for, None without a cap or a price.
    """

    gpu: Gpu
    micro_batch: int | None
    accumulation: int | None
    memory_gib: float
    tokens_per_second: float
    seconds: float | None
    dollars: float | None
    tokens_for_cap: float | None = None


@dataclass(frozen=True)
class Plan:
    """``memory``: bytes of one process at a step's high point, by part, as the recipe stands, on a CPU.

    ``disk``: bytes that the run leaves on disk, ``host``: bytes of a GPU machine's own memory, by part
    (`train.storage`).
    """

    run: DryRun
    memory: dict[str, float]
    disk: dict[str, float]
    host: dict[str, float]
    flops_per_token: float
    gpus: tuple[GpuPlan, ...]


def dry_run(recipe: Recipe) -> DryRun:
    """Return what ``recipe`` resolves to and takes; nothing is loaded or downloaded.

    Raises: FormatError when the source's config.json is damaged.
    """
    return _dry_run(recipe, _config(recipe.model.source))


def plan(
    recipe: Recipe,
    gpus: Sequence[Gpu] = tuple(GPUS.values()),
    utilisation: float = 0.3,
    cap: float | None = None,
) -> Plan:
    """Return what ``recipe`` takes, and what it would take on ``gpus``; the source's configuration may be fetched.

    ``utilisation``: share of a GPU's peak that training reaches, an assumption; small models reach less. ``cap``: the
    dollars there are.

    Raises: InputError when the source or the teacher is unknown, or utilisation is not in 0 to 1.
    """
    from wrinklefree.models.io import source_config

    if not recipe.model.source:
        raise InputError("model.source: none given; name a model (model=NAME or model=PATH)")
    if not 0.0 < utilisation <= 1.0:
        raise InputError(f"utilisation: found {utilisation}, allowed is more than 0, up to 1")
    config = _config(recipe.model.source) or source_config(recipe.model.source)
    shape = Shape.of(config)
    name = _teacher_name(recipe, config)
    teacher = Shape.of(_config(name) or source_config(name)) if name else None
    flops = flops_per_token(recipe, shape, teacher)
    rows = tuple(_on(recipe, shape, teacher, gpu, flops, utilisation, cap) for gpu in gpus)
    memory = memory_bytes(recipe, shape, teacher=teacher)
    disk, host = disk_bytes(recipe, shape, teacher), host_bytes(recipe, shape, teacher)
    return Plan(_dry_run(recipe, config), memory, disk, host, flops, rows)


def flops_per_token(recipe: Recipe, shape: Shape, teacher: Shape | None = None) -> float:
    """Return operations for one trained token: 6 for each weight of a matrix or the head, and attention's products.

    A teacher (``teacher``, or one of the student's shape) adds 2 for each of its own, computing activations twice adds
    2 for each matrix.
    """
    matrices, head = shape.layers * shape.layer_weights, shape.vocabulary * shape.hidden
    scores = shape.layers * shape.heads * shape.head * recipe.data.sequence_length
    total = (6.0 * (matrices + head) + 12.0 * scores) * max(recipe.positions_per_token, 1)
    if recipe.taught and recipe.teacher.kind == "local":
        other = teacher or shape
        total += 2.0 * (other.layers * other.layer_weights + other.table)
        total += 4.0 * other.layers * other.heads * other.head * recipe.data.sequence_length
    if recipe.device.gradient_checkpointing:
        total += (2.0 * matrices + 4.0 * scores) * max(recipe.positions_per_token, 1)
    return total


def count_parameters(config: dict[str, Any]) -> int:
    """Return the parameters of a model of a known family from its config.json (without inserted SubLN)."""
    return Shape.of(config).parameters


def _dry_run(recipe: Recipe, config: dict[str, Any] | None) -> DryRun:
    memory = memory_bytes(recipe, Shape.of(config), teacher=_local_teacher(recipe, config)) if config else {}
    return DryRun(
        resolved=recipe.resolved(),
        parameters=count_parameters(config) if config else None,
        step_tokens=recipe.step_tokens,
        steps=recipe.steps,
        total_tokens=recipe.run_budget.tokens,
        memory_gib={name: size / _GIB for name, size in memory.items()},
    )


def _on(
    recipe: Recipe,
    shape: Shape,
    teacher: Shape | None,
    gpu: Gpu,
    flops: float,
    utilisation: float,
    cap: float | None,
) -> GpuPlan:
    sequences = recipe.batch.micro_batch * recipe.batch.accumulation

    def gib(rows: int) -> float:
        return sum(_memory(recipe, shape, teacher, rows, sequences).values()) / _GIB

    fitting, rows = None, 1
    while rows <= min(sequences, _LARGEST_MICRO_BATCH) and gib(rows) <= gpu.memory_gib * (1 - _MARGIN):
        fitting = rows
        rows *= 2
    processes = recipe.device.processes
    narrow = recipe.model.dtype == "bfloat16" or recipe.device.precision == "bf16-mixed"
    peak = (gpu.bf16_tflops if narrow else gpu.fp32_tflops) * 1e12
    speed = processes * peak * utilisation / flops
    tokens = recipe.run_budget.tokens
    seconds = tokens / speed if tokens is not None else recipe.budget.max_seconds
    price = None if gpu.dollars_per_hour is None else gpu.dollars_per_hour * processes / 3600  # a second, all of them
    return GpuPlan(
        gpu=gpu,
        micro_batch=fitting,
        accumulation=None if fitting is None else -(-sequences // fitting),
        memory_gib=gib(fitting or 1),
        tokens_per_second=speed,
        seconds=seconds,
        dollars=None if price is None or seconds is None else price * seconds,
        tokens_for_cap=None if price is None or cap is None else speed * cap / price,
    )


def _memory(recipe: Recipe, shape: Shape, teacher: Shape | None, rows: int, sequences: int) -> dict[str, float]:
    batch = replace(recipe.batch, micro_batch=rows, accumulation=-(-sequences // rows))
    # Only the sizes of the budget's steps change, and those are checked when a recipe is made.
    other = replace(recipe, batch=batch, budget=replace(recipe.budget, total_tokens=None, max_steps=1))
    return memory_bytes(other, shape, True, teacher)


def _teacher_name(recipe: Recipe, config: Mapping[str, Any]) -> str | None:
    """Return the local teacher's source when it is another model than the student was made of, as far as is known."""
    if not recipe.taught or recipe.teacher.kind != "local":
        return None
    ours = config.get("wrinklefree") or {}
    name = recipe.teacher_source or ours.get("teacher")
    return None if name == recipe.model.source else name


def _local_teacher(recipe: Recipe, config: Mapping[str, Any]) -> Shape | None:
    found = _config(_teacher_name(recipe, config))
    return Shape.of(found) if found else None


def _config(source: str | None) -> dict[str, Any] | None:
    path = Path(source or "") / "config.json"
    if not source or not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        count_parameters(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: cannot be used as a model configuration ({error})") from error
    assert isinstance(config, dict)
    return config
