"""What a recipe needs beside the accelerator: disk for its checkpoint and states, memory of the machine it runs in."""

from __future__ import annotations

from wrinklefree.train.footprint import CPU_RUNTIME, optimizer_bytes, student_bytes, teacher_bytes
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.shape import Shape

_STORED = 2  # bytes of a number in a model as it is published, in bfloat16
_TOKEN_BYTES = 4  # of the token cache, and of the tokens in memory (`data.tokens`)


def disk_bytes(recipe: Recipe, shape: Shape, teacher: Shape | None = None) -> dict[str, float]:
    """Return the bytes that a run leaves on disk, by part, at the most.

    ``states``: one more than ``checkpoint.keep_last``, because the oldest goes only when the newest is whole.
    ``models``: the source and a teacher of its own (``teacher``), as a download would store them. ``tokens``: the
    cache, when the recipe has one, of as many tokens as the run reads (a source that is smaller needs less).
    """
    weights = student_bytes(recipe, shape)
    models = [shape, *([teacher] if teacher else [])]
    return {
        "checkpoint": weights,
        "states": _state_bytes(recipe, shape) * (recipe.checkpoint.keep_last + 1),
        "models": float(sum(_STORED * model.parameters for model in models)),
        "tokens": float(_TOKEN_BYTES * (recipe.run_budget.tokens or 0)) if recipe.data.cache_dir else 0.0,
    }


def host_bytes(recipe: Recipe, shape: Shape, teacher: Shape | None = None) -> dict[str, float]:
    """Return the bytes of one machine's own memory that a run on GPUs takes, by part, without the texts of its data.

    Every process loads its models here, beside the file it reads, before it moves them; to write a state, the first
    one (of a sharded student every one, its rows) copies it here.
    """
    device = recipe.device
    largest = max(student_bytes(recipe, shape), teacher_bytes(recipe, teacher or shape, whole=True))
    sharded = device.strategy == "fsdp" and device.processes > 1
    return {
        "loading": 2.0 * largest * device.devices,
        "saving": _state_bytes(recipe, shape) / (device.nodes if sharded else 1),
        "runtime": CPU_RUNTIME * device.devices,
    }


def _state_bytes(recipe: Recipe, shape: Shape) -> float:
    size = 4 if recipe.model.dtype == "float32" else 2
    return student_bytes(recipe, shape) + optimizer_bytes(recipe.optimizer, shape, size, recipe)
