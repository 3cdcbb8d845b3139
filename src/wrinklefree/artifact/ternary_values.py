"""Whether numbers are ternary, exactly, and with how few scales a ternary matrix can be told.

Exactly means that a group's values are -s, 0 and s for one s, compared bit by bit after the sign: a reader that took
"nearly" would change a model without saying so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.packing import Granularity
from wrinklefree.errors import FormatError

Codes = NDArray[np.int8]
Scales = NDArray[np.float32]

# The finest group that a packed model can have; a ternary row is ternary in every group of it.
FINEST_GROUP = 64
GROUP_SIZES = (256, 128, 64)
_CHUNK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Grain:
    """How many weights share a scale: a tensor, a row, or ``group_size`` neighbours in a row (else 0)."""

    granularity: Granularity
    group_size: int = 0


# From the coarsest to the finest.
GRAINS = (Grain("tensor"), Grain("row"), *(Grain("group", size) for size in GROUP_SIZES))


def exact_ternary(values: NDArray[np.float32] | NDArray[np.float16]) -> tuple[Codes, Scales] | None:
    """Return codes int8 ``[O, I]`` and positive scales float32 ``[O, G]`` of a ternary matrix ``[O, I]``, else None.

    A group has 64 columns, or a whole row where 64 does not divide it. A group of zeros has the scale 0. Values may be
    float16 or float32; what has NaN or an infinity is not ternary.
    """
    rows, columns = values.shape
    width = FINEST_GROUP if columns and columns % FINEST_GROUP == 0 else max(1, columns)
    codes = np.empty((rows, columns), np.int8)
    scales = np.zeros((rows, columns // width), np.float32)
    step = max(1, _CHUNK_ELEMENTS // max(1, columns))
    for begin in range(0, rows, step):
        part = slice(begin, begin + step)
        sizes = np.abs(values[part]).reshape(-1, columns // width, width) if columns else np.empty((0, 0, 1))
        largest = sizes.max(axis=2, initial=0)
        # A comparison with NaN is false, so one NaN is enough.
        if not np.isfinite(largest).all() or not ((sizes == largest[:, :, None]) | (sizes == 0)).all():
            return None
        scales[part] = largest
        np.subtract(values[part] > 0, values[part] < 0, out=codes[part], dtype=np.int8)
    return codes, scales


def regroup(scales: Scales, shape: tuple[int, int], grain: Grain) -> Scales | None:
    """Return scales that mean the same in another grain, or None when it cannot hold them.

    ``scales``: float32 ``[1]``, ``[O]`` or ``[O, G]`` of a matrix ``[O, I]``, G dividing I; a group whose scale is 0
    has codes 0 and takes any other. Result: ``[1]``, ``[O]`` or ``[O, ceil(I / group_size)]``. Scales of groups must be
    exact float16, which is how a packed model holds them.
    """
    rows, columns = shape
    if grain.granularity == "tensor":
        return _one(scales.reshape(1, -1))
    blocks = scales if scales.ndim == 2 else np.broadcast_to(scales.reshape(-1, 1), (rows, 1))
    if grain.granularity == "row":
        return _one(blocks)
    found = _groups(blocks, columns, grain.group_size)
    return found if found is not None and _is_float16(found) else None


def coarsest(scales: Scales, block_columns: int) -> tuple[Granularity, int, Scales]:
    """Return granularity, group size (0 unless ``group``) and scales of the coarsest grain that holds ``scales``.

    ``scales``: float32 ``[1]``, ``[O]`` or ``[O, G]``, one for each ``block_columns`` columns.

    Raises: FormatError when none does.
    """
    rows = scales.shape[0]
    columns = block_columns * (scales.shape[1] if scales.ndim == 2 else 1)
    for grain in GRAINS:
        found = regroup(scales, (rows, columns), grain)
        if found is not None:
            return grain.granularity, grain.group_size, found
    raise FormatError(f"scales for every {block_columns} columns fit no grain: {_ALLOWED}")


def common_grain(layers: Iterable[tuple[str, Scales, tuple[int, int]]]) -> Grain:
    """Return the coarsest grain that holds every layer, given as name, scales and shape (as `regroup` takes them).

    Raises: FormatError naming the first layer with which none is left.
    """
    left = list(GRAINS)
    for name, scales, shape in layers:
        left = [grain for grain in left if regroup(scales, shape, grain) is not None]
        if not left:
            raise FormatError(f"{name}: its scales and those before fit no common grain: {_ALLOWED}")
    return left[0]


def _one(blocks: Scales) -> Scales | None:
    """The one scale besides 0 of each row of blocks, float32 ``[n]``; None when a row has two."""
    if not blocks.shape[1]:
        return np.zeros(len(blocks), np.float32)
    place = np.abs(blocks).argmax(axis=1)
    chosen = np.take_along_axis(blocks, place[:, None], axis=1)
    return chosen[:, 0] if ((blocks == chosen) | (blocks == 0)).all() else None


def _groups(blocks: Scales, columns: int, group_size: int) -> Scales | None:
    rows, count = blocks.shape
    if not count or columns % count:
        return None
    width = columns // count
    groups = -(-columns // group_size)
    if count == 1 or width % group_size == 0:
        return np.repeat(blocks, -(-width // group_size), axis=1)
    if group_size % width:
        return None
    # The last group may be cut off; what it lacks is free, as zeros are.
    merged = np.zeros((rows, groups * (group_size // width)), np.float32)
    merged[:, :count] = blocks
    found = _one(merged.reshape(rows * groups, -1))
    return None if found is None else found.reshape(rows, groups)


def _is_float16(scales: Scales) -> bool:
    with np.errstate(over="ignore"):
        return bool((scales.astype(np.float16) == scales).all())


_ALLOWED = "one scale per tensor, per row, or per group of 256, 128 or 64 columns as float16"
