"""The NumPy statement of every ternary byte layout. This file is the specification; C++ is tested against it.

Shape letters: O output features (rows), I input features (columns), R = ceil(O / 4) row blocks,
C = ceil(I / 64) column blocks, G scale groups along a row.

Layout ``t2-r4c64`` (2.0 bits a weight, format version 1)
---------------------------------------------------------
A weight code is 0, 1 or 2 for the ternary value -1, 0 or +1; the bit pattern 3 never occurs and is refused.
Codes are stored as uint8 of shape ``[R, C, 64]``: one block holds 4 rows x 64 columns in 64 contiguous bytes, so
that one stream of memory feeds a thread and one 16, 32 or 64 byte load covers 1, 2 or 4 rows. Within a block,
byte ``16 * r + j`` (row r of 4, j of 16) holds four columns of row r:

    bits 1-0: column j      bits 3-2: column j + 16      bits 5-4: column j + 32      bits 7-6: column j + 48

Missing rows (O not a multiple of 4) and columns (I not a multiple of 64) hold code 1, the value 0.

Scales: ``tensor`` float32 ``[1]``; ``row`` float32 ``[O]``; ``group`` float16 ``[R, G, 4]`` with
G = ceil(I / group_size), group_size 64, 128 or 256, element ``[b, g, r]`` the scale of row ``4 b + r`` and columns
``g * group_size`` onward; scales of missing rows are 0. A weight is ``(code - 1) * scale``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import FormatError, InputError

LAYOUT = "t2-r4c64"
ROWS_PER_BLOCK = 4
COLUMNS_PER_BLOCK = 64
BYTES_PER_BLOCK = 64
GROUP_SIZES = (64, 128, 256)

Granularity = Literal["tensor", "row", "group"]
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row", "group")


@dataclass(frozen=True)
class PackedShape:
    """The sizes of one packed matrix with ``rows`` output and ``columns`` input features."""

    rows: int
    columns: int

    @property
    def row_blocks(self) -> int:
        return -(-self.rows // ROWS_PER_BLOCK)

    @property
    def column_blocks(self) -> int:
        return -(-self.columns // COLUMNS_PER_BLOCK)

    @property
    def codes(self) -> tuple[int, int, int]:
        """The shape of the stored uint8 array."""
        return self.row_blocks, self.column_blocks, BYTES_PER_BLOCK

    def scales(self, granularity: Granularity, group_size: int = 64) -> tuple[int, ...]:
        """The shape of the stored scales."""
        if granularity == "tensor":
            return (1,)
        if granularity == "row":
            return (self.rows,)
        check_group_size(group_size)
        return self.row_blocks, -(-self.columns // group_size), ROWS_PER_BLOCK


def check_group_size(group_size: int) -> None:
    """Raises: InputError when no kernel can hold a scale for every ``group_size`` columns."""
    if group_size not in GROUP_SIZES:
        raise InputError(f"group_size: found {group_size}, allowed are {', '.join(map(str, GROUP_SIZES))}")


def pack_codes(ternary: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return the packed codes ``[R, C, 64]`` of ternary values ``[O, I]`` in {-1, 0, 1}.

    Raises: InputError for another rank or another value.
    """
    if ternary.ndim != 2:
        raise InputError(f"pack_codes: found an array of {ternary.ndim} dimensions, a matrix is needed")
    if ternary.size and (ternary.min() < -1 or ternary.max() > 1):
        raise InputError("pack_codes: found a value outside -1, 0, 1; ternarise before packing")
    shape = PackedShape(*ternary.shape)
    codes = np.ones((shape.row_blocks * ROWS_PER_BLOCK, shape.column_blocks * COLUMNS_PER_BLOCK), np.uint8)
    codes[: shape.rows, : shape.columns] = (ternary + 1).astype(np.uint8)
    # [R, r, C, plane, j] -> [R, C, r, j, plane]
    planes = codes.reshape(shape.row_blocks, ROWS_PER_BLOCK, shape.column_blocks, 4, 16).transpose(0, 2, 1, 4, 3)
    shifts = np.array([0, 2, 4, 6], np.uint8)
    return np.bitwise_or.reduce(planes << shifts, axis=-1).astype(np.uint8).reshape(shape.codes)


def unpack_codes(packed: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.int8]:
    """Return the ternary values ``[O, I]`` of packed codes ``[R, C, 64]``.

    Raises: FormatError when the array's shape does not belong to ``rows`` x ``columns`` or a code is 3.
    """
    shape = PackedShape(rows, columns)
    if packed.shape != shape.codes:
        raise FormatError(f"packed codes: found shape {packed.shape}, {rows} x {columns} needs {shape.codes}")
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError("packed codes: found the unused bit pattern 3; the file is damaged")
    shifts = np.array([0, 2, 4, 6], np.uint8)
    planes = (packed.reshape(*shape.codes[:2], ROWS_PER_BLOCK, 16, 1) >> shifts) & 3
    codes = planes.transpose(0, 2, 1, 4, 3).reshape(shape.row_blocks * ROWS_PER_BLOCK, -1)
    return codes[:rows, :columns].astype(np.int8) - np.int8(1)


def pack_group_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return the stored group scales ``[R, G, 4]`` of scales ``[O, G]``."""
    rows, groups = scales.shape
    padded = np.zeros((-(-rows // ROWS_PER_BLOCK) * ROWS_PER_BLOCK, groups), np.float16)
    padded[:rows] = scales
    return np.ascontiguousarray(padded.reshape(-1, ROWS_PER_BLOCK, groups).transpose(0, 2, 1))


def unpack_group_scales(stored: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    """Return group scales ``[O, G]`` of the stored form ``[R, G, 4]``."""
    blocks, groups, _ = stored.shape
    return np.ascontiguousarray(stored.transpose(0, 2, 1)).reshape(blocks * ROWS_PER_BLOCK, groups)[:rows]


def quantize_q8(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 codes ``[V, D]`` and scales float32 ``[V]`` of an embedding or head: absmax per row.

    ``weight[v] ~ codes[v] * scales[v]`` with ``scales[v] = max|weight[v]| / 127`` (1 for a row of zeros), rounded
    half to even.
    """
    peak = np.abs(weight).max(axis=1).astype(np.float32)
    scales = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
    codes = np.rint(weight / scales[:, None]).astype(np.int8)
    return codes, scales
