"""What a file's format can hold of a model: each limit as a change of the model's parts, exact, rounded or lossy.

A writer calls these before it writes a byte. What they return is the model as the file will have it; the writer puts
exactly that into bytes, and the verification expects exactly that back. Codes are never touched: every function here
takes them as they are, none makes codes out of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.parts import ModelParts, Part, TensorChange, TernaryPart
from wrinklefree.errors import InputError

Kind = Literal["exact", "rounded", "lossy"]
# Half a unit in the last place of float16: what rounding to it may change, relatively.
HALF_ROUNDING = 2.0**-11


@dataclass(frozen=True)
class Conversion:
    """What became of one part because of the format's limits, and why; ``lossy`` is more than a rounded scale."""

    name: str
    kind: Kind
    what: str


def refusal(model: ModelParts, part: str, what: str, holders: str) -> InputError:
    """Return the error for a part that a format cannot hold exactly; ``holders`` are the formats that can."""
    return InputError(
        f"{model.place}: {part}: {what}; nothing was written. Formats that hold it: {holders}. With --lossy it is "
        "converted and the damage measured"
    )


def half_scales(scales: NDArray[np.float32]) -> tuple[NDArray[np.float32], float]:
    """Return scales as float16 holds them, and the largest relative change (infinity when one overflows)."""
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(half).all():
        return half, float("inf")
    wide = scales.astype(np.float64)
    changes = np.abs(half - wide) / np.maximum(np.abs(wide), np.finfo(np.float64).tiny)
    return half, float(np.where(wide == 0, 0.0, changes).max(initial=0.0))


def with_scales(part: TernaryPart, scales: NDArray[np.float32]) -> TernaryPart:
    """Return a layer with the same codes and other scales."""
    read = part.read
    return replace(part, read=lambda: (read()[0], scales))


def without_factors(model: ModelParts) -> ModelParts:
    """Return a model without its low-rank corrections."""
    parts = tuple(replace(p, factors=None) if isinstance(p, TernaryPart) else p for p in model.parts)
    return replace(model, parts=parts, info=replace(model.info, low_rank={}))


def pad_inner(model: ModelParts, size: int) -> ModelParts:
    """Return a model whose feed-forward's inner dimension is ``size``: zeros in gate, up and down change nothing.

    A row of zeros in gate and up makes an inner value of zero, which a column of zeros in down does not read. The scale
    of a new row or column is that of its neighbour, so that no finer granularity comes into being.
    """
    parts: list[Part] = []
    for part in model.parts:
        if isinstance(part, TernaryPart) and part.name.endswith((".gate_proj", ".up_proj")):
            parts.append(_more_rows(part, size))
        elif isinstance(part, TernaryPart) and part.name.endswith(".down_proj"):
            parts.append(_more_columns(part, size, model.info.group_size))
        else:
            parts.append(part)
    return replace(model, parts=tuple(parts), config={**model.config, "intermediate_size": size})


def _more_rows(part: TernaryPart, rows: int) -> TernaryPart:
    more = rows - part.shape[0]

    def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, scales = part.read()
        if scales.shape[0] == part.shape[0] and scales.shape != (1,):
            scales = np.concatenate([scales, np.repeat(scales[-1:], more, axis=0)])
        return np.concatenate([codes, np.zeros((more, part.shape[1]), np.int8)]), scales

    bias = None if part.bias is None else np.concatenate([part.bias, np.zeros(more, np.float32)])
    factors = part.factors
    if factors is not None:
        factors = np.concatenate([factors[0], np.zeros((more, part.rank), np.float32)]), factors[1]
    return replace(part, shape=(rows, part.shape[1]), read=read, bias=bias, factors=factors)


def _more_columns(part: TernaryPart, columns: int, group_size: int) -> TernaryPart:
    more = columns - part.shape[1]

    def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, scales = part.read()
        if scales.ndim == 2:
            groups = -(-columns // group_size)
            scales = np.concatenate([scales, np.repeat(scales[:, -1:], groups - scales.shape[1], axis=1)], axis=1)
        return np.concatenate([codes, np.zeros((part.shape[0], more), np.int8)], axis=1), scales

    factors = part.factors
    if factors is not None:
        factors = factors[0], np.concatenate([factors[1], np.zeros((part.rank, more), np.float32)], axis=1)
    return replace(part, shape=(part.shape[0], columns), read=read, factors=factors)


def block_scales(
    scales: NDArray[np.float32], shape: tuple[int, int], block: int, group_size: int
) -> NDArray[np.float32]:
    """Return a scale for each block of ``block`` columns, float32 ``[O, I / block]``; ``block`` divides a group."""
    rows, columns = shape
    blocks = columns // block
    if scales.ndim == 2:
        return np.repeat(scales, group_size // block, axis=1)[:, :blocks]
    return np.broadcast_to(scales.reshape(-1, 1), (rows, blocks)).astype(np.float32)


@dataclass(frozen=True)
class FilePlan:
    """How one model becomes one file or directory, decided before anything is written.

    ``fitted``: the model as the file holds it, with the source's shapes; ``written``: the same with the padding that
    the file needs, which is what reading it back must give. ``write`` makes the bytes under a path and returns what
    became of each part. ``notes`` are sentences for the user. ``read`` is for a format whose own reader does not see
    all of a model.
    """

    fitted: ModelParts
    written: ModelParts
    write: Callable[[Path], list[TensorChange]]
    conversions: tuple[Conversion, ...] = ()
    notes: tuple[str, ...] = ()
    read: Callable[[Path], ModelParts] | None = None

    @property
    def lossy(self) -> bool:
        """Whether anything is more than exact or a rounded scale."""
        return any(conversion.kind == "lossy" for conversion in self.conversions)
