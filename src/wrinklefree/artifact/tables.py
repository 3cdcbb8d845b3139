"""The NumPy statement of the bytes of quantised tables: the embedding and the head. Specification, as packing.py is.

Shape letters: V rows (vocabulary), D columns (hidden size), R = ceil(V / 16) row blocks, C = ceil(D / 64) column
blocks. A value reads as ``number * scale``. A block is 16 rows x 64 columns; missing rows and columns hold number 0,
their scales are 0.

=======  =================  ========  =======================  =============  ==============================
format   codes U8           numbers   scales                   a scale for    bits a weight, scales included
=======  =================  ========  =======================  =============  ==============================
``q8``   ``[R, C, 1024]``   -127-127  float32 ``[V]``          a row          8
``q6``   ``[R, C, 768]``    -32-31    float16 ``[R, C, 16]``   64 columns     6.25
``q4``   ``[R, C, 512]``    -8-7      float16 ``[R, 2 C, 16]`` 32 columns     4.5
=======  =================  ========  =======================  =============  ==============================

Element ``[b, g, r]`` of the float16 scales belongs to row ``16 b + r`` and the columns ``64 g`` or ``32 g`` onward;
a scale may be negative (the longer side of an unsymmetric range then lies where the group's largest value is). The
bytes of a block, r a row of 16, j of 4:

``q8``: byte ``64 k + 4 r + j`` (k of 16) is column ``4 k + j`` of row r, plus 128.

``q4``: byte ``64 k + 4 r + j`` (k of 8) holds column ``4 k + j`` plus 8 in its low four bits and column
``32 + 4 k + j`` plus 8 in its high four.

``q6``: the number plus 32 has six bits. 512 bytes hold its low four as in ``q4``; then byte ``512 + 64 d + 4 r + j``
(d of 4) holds the high two of the columns ``4 d + j``, ``+ 16``, ``+ 32``, ``+ 48`` in its bit pairs, lowest
first.

``f16`` is no quantised format: plain rows float16 ``[V, D]``.

Why so: as in packing.py, 64 bytes belong to 4 columns of 16 rows, so that a kernel sums no register across.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.packing import COLUMNS_PER_BLOCK, ROWS_PER_BLOCK, pack_group_scales, unpack_group_scales
from wrinklefree.artifact.table_fit import fit_table
from wrinklefree.errors import FormatError, InputError

TableFormat = Literal["q8", "q6", "q4", "f16"]
TABLE_FORMATS: tuple[TableFormat, ...] = ("q8", "q6", "q4", "f16")

_BLOCK_BYTES = {"q8": 1024, "q6": 768, "q4": 512}
_GROUP_COLUMNS = {"q6": 64, "q4": 32}
_LARGEST = {"q6": 31, "q4": 7}
_OFFSET = {"q8": 128, "q6": 32, "q4": 8}


@dataclass(frozen=True)
class TableShape:
    """The sizes of one table with ``rows`` tokens and ``columns`` features."""

    rows: int
    columns: int
    format: TableFormat

    @property
    def row_blocks(self) -> int:
        return -(-self.rows // ROWS_PER_BLOCK)

    @property
    def column_blocks(self) -> int:
        return -(-self.columns // COLUMNS_PER_BLOCK)

    @property
    def codes(self) -> tuple[int, ...]:
        """The shape of the stored codes (uint8, or float16 for f16)."""
        if self.format == "f16":
            return self.rows, self.columns
        return self.row_blocks, self.column_blocks, _BLOCK_BYTES[self.format]

    @property
    def scales(self) -> tuple[int, ...] | None:
        """The shape of the stored scales, None for f16."""
        if self.format == "f16":
            return None
        if self.format == "q8":
            return (self.rows,)
        groups = self.column_blocks * COLUMNS_PER_BLOCK // _GROUP_COLUMNS[self.format]
        return self.row_blocks, groups, ROWS_PER_BLOCK


@dataclass(frozen=True)
class QuantizedTable:
    """Numbers int8 ``[V, D]`` and scales float32 ``[V]`` (q8) or float16 ``[V, ceil(D / 64 or 32)]`` (q6, q4).

    f16: numbers are float16 values and there are no scales.
    """

    format: TableFormat
    numbers: NDArray[Any]
    scales: NDArray[Any] | None

    def values(self) -> NDArray[np.float32]:
        """Return what a reader of the table sees, float32 ``[V, D]``."""
        numbers: NDArray[np.float32] = self.numbers.astype(np.float32)
        if self.scales is None:
            return numbers
        rows, columns = self.numbers.shape
        scales = self.scales.astype(np.float32).reshape(rows, -1)
        if self.format == "q8":
            return numbers * scales
        return numbers * np.repeat(scales, _GROUP_COLUMNS[self.format], axis=1)[:, :columns]


def quantize_table(
    weight: NDArray[np.float32], format: TableFormat, moments: NDArray[np.floating[Any]] | None = None
) -> QuantizedTable:
    """Return a table ``[V, D]`` in ``format``.

    q8: ``scale = max|row| / 127`` (at least 2^-126, and 1 for a row of zeros), numbers rounded half to even. q6, q4:
    scales and numbers are fitted as table_fit.py says, for the inputs that ``moments`` describes where it is given.
    f16: rounded.

    Raises: InputError for another rank, for values that are no numbers or too large for float16.
    """
    if weight.ndim != 2:
        raise InputError(f"quantize_table: found an array of {weight.ndim} dimensions, a matrix is needed")
    if not np.isfinite(weight).all():
        raise InputError("quantize_table: found an infinity or NaN")
    weight = weight.astype(np.float32, copy=False)
    if format == "f16":
        if np.abs(weight).max() > np.finfo(np.float16).max:
            raise InputError("quantize_table: found values beyond float16's range (65504)")
        return QuantizedTable(format, weight.astype(np.float16), None)
    if format == "q8":
        peak = np.abs(weight).max(axis=1)
        # A subnormal scale is too coarse: numbers would go beyond 127, or to infinity.
        least = np.finfo(np.float32).tiny
        scales = np.where(peak > 0, np.maximum(peak / np.float32(127), least), np.float32(1)).astype(np.float32)
        return QuantizedTable(format, np.rint(weight / scales[:, None]).astype(np.int8), scales)
    return QuantizedTable(format, *fit_table(weight, _GROUP_COLUMNS[format], _LARGEST[format], moments))


def pack_table(table: QuantizedTable) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the stored codes and scales (`TableShape.codes`, `TableShape.scales`)."""
    if table.scales is None:
        return table.numbers, None
    rows, columns = table.numbers.shape
    shape = TableShape(rows, columns, table.format)
    offset = _OFFSET[table.format]
    padded = np.full((shape.row_blocks * ROWS_PER_BLOCK, shape.column_blocks * COLUMNS_PER_BLOCK), offset, np.uint8)
    padded[:rows, :columns] = table.numbers.astype(np.int16) + offset
    # [R, r, C, column] -> [R, C, column, r]: of the columns, j is to stand innermost
    blocks = padded.reshape(shape.row_blocks, ROWS_PER_BLOCK, shape.column_blocks, COLUMNS_PER_BLOCK)
    fours = blocks.transpose(0, 2, 3, 1).reshape(shape.row_blocks, shape.column_blocks, 16, 4, ROWS_PER_BLOCK)
    quads = fours.transpose(0, 1, 2, 4, 3)  # [R, C, column / 4, r, j]
    if table.format == "q8":
        codes = quads
    else:
        low = quads & np.uint8(15)
        codes = low[:, :, :8] | (low[:, :, 8:] << np.uint8(4))
        if table.format == "q6":
            high = (quads >> np.uint8(4)).reshape(*quads.shape[:2], 4, 4, ROWS_PER_BLOCK, 4)  # [R, C, plane, d, r, j]
            shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1, 1, 1)
            codes = np.concatenate([codes, np.bitwise_or.reduce(high << shifts, axis=2)], axis=2)
    packed = np.ascontiguousarray(codes).reshape(shape.codes)
    if table.format == "q8":
        return packed, table.scales
    assert shape.scales is not None
    missing = shape.scales[1] - table.scales.shape[1]
    return packed, pack_group_scales(np.pad(table.scales, ((0, 0), (0, missing))))


def unpack_table(
    codes: NDArray[Any], scales: NDArray[Any] | None, rows: int, columns: int, format: TableFormat
) -> QuantizedTable:
    """Return the table of stored codes and scales. Raises: FormatError for shapes that do not belong to it."""
    shape = TableShape(rows, columns, format)
    stored_scales = None if scales is None else scales.shape
    for what, found, needed in (("codes", codes.shape, shape.codes), ("scales", stored_scales, shape.scales)):
        if found != needed:
            raise FormatError(f"{format} table {what}: found shape {found}, {rows} x {columns} needs {needed}")
    if scales is None:
        return QuantizedTable(format, codes, None)
    if format == "q8":
        quads = codes.reshape(shape.row_blocks, shape.column_blocks, 16, ROWS_PER_BLOCK, 4)
    else:
        stored = codes.reshape(shape.row_blocks, shape.column_blocks, -1, ROWS_PER_BLOCK, 4)
        quads = np.concatenate([stored[:, :, :8] & np.uint8(15), stored[:, :, :8] >> np.uint8(4)], axis=2)
        if format == "q6":
            shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1, 1, 1)
            high = (stored[:, :, None, 8:] >> shifts) & np.uint8(3)
            quads = quads | (high.reshape(quads.shape) << np.uint8(4))
        scales = unpack_group_scales(scales, rows)[:, : -(-columns // _GROUP_COLUMNS[format])]
    blocks = quads.transpose(0, 3, 1, 2, 4).reshape(shape.row_blocks * ROWS_PER_BLOCK, -1)
    numbers = blocks[:rows, :columns].astype(np.int16) - _OFFSET[format]
    return QuantizedTable(format, numbers.astype(np.int8), scales)
