"""The NumPy statement of every ternary byte layout. This file is the specification; C++ is tested against it.

Shape letters: O output features (rows), I input features (columns), R = ceil(O / 16) row blocks,
C = ceil(I / 64) column blocks, G scale groups along a row.

A weight code is 0, 1 or 2 for the ternary value -1, 0 or +1. A weight is ``(code - 1) * scale``. Missing rows (O not
a multiple of 16) and columns (I not a multiple of 64) hold code 1, the value 0. A block is 16 rows x 64 columns.

Layout ``t2-r16c64`` (2.0 bits a weight)
----------------------------------------
Codes are uint8 ``[R, C, 256]``. Within a block, byte ``64 d + 4 r + j`` (d of 4, row r of 16, j of 4) holds four
columns of row r:

    bits 1-0: column 4 d + j      bits 3-2: that + 16      bits 5-4: that + 32      bits 7-6: that + 48

The bit pattern 3 never occurs and is refused.

Layout ``t1.6-r16c64`` (1.6 bits a weight)
------------------------------------------
Codes are uint8 ``[R, N]``: for a row of blocks first C // 5 superblocks of 5 blocks (16 rows x 320 columns) in 1,024
bytes each, then the C % 5 blocks left over as in ``t2-r16c64``, so N = 1024 (C // 5) + 256 (C % 5). In a superblock,
byte ``64 d + 4 r + j`` (d of 16) holds column ``4 d + j`` of row r in each of the five blocks. With their codes
c0 ... c4 and n = 81 c0 + 27 c1 + 9 c2 + 3 c3 + c4 the byte is

    v = ceil(256 n / 243),

a fixed-point fraction n / 243: multiplied by three, its carry is the next code and its low eight bits what is left,
``c_p = (3 v_p) >> 8``, ``v_(p+1) = (3 v_p) & 255``. The 13 byte values that no n gives are refused.
(Base-3 packing as a fraction: the ternary types of llama.cpp use the same idea, ggml-org/llama.cpp pull request 8151.)

Scales: ``tensor`` float32 ``[1]``; ``row`` float32 ``[O]``; ``group`` float16 ``[R, G, 16]`` with
G = ceil(I / group_size), group_size 64, 128 or 256, element ``[b, g, r]`` the scale of row ``16 b + r`` and columns
``g * group_size`` onward; scales of missing rows are 0.

Why so: 64 bytes are 4 columns of 16 rows (32 bytes of 8 rows, 16 of 4), so every element of a vector register
belongs to one row. Four activations are broadcast to all rows, nothing is ever summed across a register, and one
conversion serves the scales of 16 rows. A thread reads one ascending stream of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import FormatError, InputError

Layout = Literal["t2-r16c64", "t1.6-r16c64"]
LAYOUT: Layout = "t2-r16c64"
DENSE_LAYOUT: Layout = "t1.6-r16c64"
LAYOUTS: tuple[Layout, ...] = (LAYOUT, DENSE_LAYOUT)
ROWS_PER_BLOCK = 16
COLUMNS_PER_BLOCK = 64
BYTES_PER_BLOCK = 256
BLOCKS_PER_FIVE = 5
BYTES_PER_FIVE = 1024
GROUP_SIZES = (64, 128, 256)

Granularity = Literal["tensor", "row", "group"]
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "row", "group")

_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)


@dataclass(frozen=True)
class PackedShape:
    """The sizes of one packed matrix with ``rows`` output and ``columns`` input features."""

    rows: int
    columns: int
    layout: Layout = LAYOUT

    @property
    def row_blocks(self) -> int:
        return -(-self.rows // ROWS_PER_BLOCK)

    @property
    def column_blocks(self) -> int:
        return -(-self.columns // COLUMNS_PER_BLOCK)

    @property
    def codes(self) -> tuple[int, ...]:
        """The shape of the stored uint8 array."""
        if self.layout == LAYOUT:
            return self.row_blocks, self.column_blocks, BYTES_PER_BLOCK
        fives, left = divmod(self.column_blocks, BLOCKS_PER_FIVE)
        return self.row_blocks, fives * BYTES_PER_FIVE + left * BYTES_PER_BLOCK

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


def pack_codes(ternary: NDArray[np.int8], layout: Layout = LAYOUT) -> NDArray[np.uint8]:
    """Return the packed codes (`PackedShape.codes`) of ternary values ``[O, I]`` in {-1, 0, 1}.

    Raises: InputError for another rank or another value.
    """
    if ternary.ndim != 2:
        raise InputError(f"pack_codes: found an array of {ternary.ndim} dimensions, a matrix is needed")
    if ternary.size and (ternary.min() < -1 or ternary.max() > 1):
        raise InputError("pack_codes: found a value outside -1, 0, 1; ternarise before packing")
    rows, columns = ternary.shape
    shape = PackedShape(rows, columns, layout)
    codes = np.ones((shape.row_blocks * ROWS_PER_BLOCK, shape.column_blocks * COLUMNS_PER_BLOCK), np.uint8)
    codes[:rows, :columns] = (ternary + 1).astype(np.uint8)
    blocks = codes.reshape(shape.row_blocks, ROWS_PER_BLOCK, shape.column_blocks, COLUMNS_PER_BLOCK)
    if layout == LAYOUT:
        return _pack_two_bits(blocks)
    whole = shape.column_blocks // BLOCKS_PER_FIVE * BLOCKS_PER_FIVE
    return np.concatenate(
        [
            _pack_fives(blocks[:, :, :whole]).reshape(shape.row_blocks, -1),
            _pack_two_bits(blocks[:, :, whole:]).reshape(shape.row_blocks, -1),
        ],
        axis=1,
    )


def unpack_codes(packed: NDArray[np.uint8], rows: int, columns: int, layout: Layout = LAYOUT) -> NDArray[np.int8]:
    """Return the ternary values ``[O, I]`` of packed codes.

    Raises: FormatError when the array's shape does not belong to ``rows`` x ``columns`` or a byte stands for no code.
    """
    shape = PackedShape(rows, columns, layout)
    if packed.shape != shape.codes:
        raise FormatError(f"packed codes: found shape {packed.shape}, {rows} x {columns} needs {shape.codes}")
    if layout == LAYOUT:
        blocks = _unpack_two_bits(packed)
    else:
        split = shape.column_blocks // BLOCKS_PER_FIVE * BYTES_PER_FIVE
        fives = _unpack_fives(packed[:, :split].reshape(shape.row_blocks, -1, BYTES_PER_FIVE))
        left = _unpack_two_bits(packed[:, split:].reshape(shape.row_blocks, -1, BYTES_PER_BLOCK))
        blocks = np.concatenate([fives, left], axis=2)
    codes = blocks.reshape(shape.row_blocks * ROWS_PER_BLOCK, shape.column_blocks * COLUMNS_PER_BLOCK)
    return codes[:rows, :columns].astype(np.int8) - np.int8(1)


def _pack_two_bits(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``[R, C, 256]`` of codes ``[R, 16, C, 64]``."""
    rows, _, columns, _ = blocks.shape
    # [R, r, C, plane, d, j] -> [R, C, d, r, j, plane]
    planes = blocks.reshape(rows, ROWS_PER_BLOCK, columns, 4, 4, 4).transpose(0, 2, 4, 1, 5, 3)
    return np.bitwise_or.reduce(planes << _SHIFTS, axis=-1).reshape(rows, columns, BYTES_PER_BLOCK)


def _unpack_two_bits(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return codes ``[R, 16, C, 64]`` of ``[R, C, 256]``. Raises: FormatError for the bit pattern 3."""
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError("packed codes: found the unused bit pattern 3; the file is damaged")
    rows, columns, _ = packed.shape
    planes = (packed.reshape(rows, columns, 4, ROWS_PER_BLOCK, 4, 1) >> _SHIFTS) & np.uint8(3)
    return planes.transpose(0, 3, 1, 5, 2, 4).reshape(rows, ROWS_PER_BLOCK, columns, COLUMNS_PER_BLOCK)


def _pack_fives(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return ``[R, S, 1024]`` of codes ``[R, 16, 5 S, 64]``."""
    rows, _, columns, _ = blocks.shape
    supers = columns // BLOCKS_PER_FIVE
    # [R, r, S, p, d, j] -> [R, S, d, r, j, p]
    digits = blocks.reshape(rows, ROWS_PER_BLOCK, supers, BLOCKS_PER_FIVE, 16, 4).transpose(0, 2, 4, 1, 5, 3)
    numbers = (digits * _POWERS).sum(axis=-1, dtype=np.uint32)
    return ((numbers * 256 + 242) // 243).astype(np.uint8).reshape(rows, supers, BYTES_PER_FIVE)


def _unpack_fives(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return codes ``[R, 16, 5 S, 64]`` of ``[R, S, 1024]``. Raises: FormatError for a byte that stands for no code."""
    rows, supers, _ = packed.shape
    left = packed.reshape(rows, supers, 16, ROWS_PER_BLOCK, 4).astype(np.uint16)
    digits = []
    for _ in range(BLOCKS_PER_FIVE):
        left = left * 3
        digits.append(left >> 8)
        left &= 255
    # 243 v = 256 n + left, and v is the smallest such v exactly when left < 243
    if np.any(left >= 243):
        raise FormatError("packed codes: found a byte that stands for no five codes; the file is damaged")
    codes = np.stack(digits, axis=2).astype(np.uint8)  # [R, S, p, d, r, j]
    return codes.transpose(0, 4, 1, 2, 3, 5).reshape(rows, ROWS_PER_BLOCK, supers * BLOCKS_PER_FIVE, COLUMNS_PER_BLOCK)


def pack_group_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return the stored group scales ``[R, G, 16]`` of scales ``[O, G]``."""
    rows, groups = scales.shape
    padded = np.zeros((-(-rows // ROWS_PER_BLOCK) * ROWS_PER_BLOCK, groups), np.float16)
    padded[:rows] = scales
    return np.ascontiguousarray(padded.reshape(-1, ROWS_PER_BLOCK, groups).transpose(0, 2, 1))


def unpack_group_scales(stored: NDArray[np.float16], rows: int) -> NDArray[np.float16]:
    """Return group scales ``[O, G]`` of the stored form ``[R, G, 16]``."""
    blocks, groups, _ = stored.shape
    return np.ascontiguousarray(stored.transpose(0, 2, 1)).reshape(blocks * ROWS_PER_BLOCK, groups)[:rows]
