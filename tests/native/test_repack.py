"""Rows of other formats turned into our blocks by the extension, against the statement in packing.py."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree import _native
from wrinklefree.artifact.packing import PackedShape, pack_codes
from wrinklefree.artifact.tables import pack_table, quantize_table
from wrinklefree.errors import FormatError, InputError

BLOCK = {"I8": 1, "TQ1_0": 256, "TQ2_0": 256, "Q4_0": 32, "I2_S": 128}


def stored(codes: NDArray[np.int8], row_type: str) -> NDArray[np.uint8]:
    """The bytes of rows ``[O, I]`` in a type; those of I2_S as its definition says them, column by column."""
    if row_type == "I8":
        return codes.reshape(-1).view(np.uint8)
    if row_type == "Q4_0":  # the package's own rounding would write -8 and 7
        nibbles = (codes + 8).astype(np.uint8).reshape(-1, 2, 16)
        scales = np.full((len(nibbles), 2), 60, np.uint8)
        return np.concatenate([scales, nibbles[:, 0] | nibbles[:, 1] << 4], axis=1).reshape(-1)
    if row_type != "I2_S":
        data: NDArray[np.uint8] = quantize(codes.astype(np.float32), gguf.GGMLQuantizationType[row_type])
        return data.reshape(-1)
    blocks = (codes + 1).astype(np.uint8).reshape(-1, 4, 32)  # columns j, j + 32, j + 64, j + 96 of a block of 128
    return (blocks[:, 0] << 6 | blocks[:, 1] << 4 | blocks[:, 2] << 2 | blocks[:, 3]).reshape(-1)


def repacked(data: NDArray[np.uint8], row_type: str, rows: int, columns: int, **options: object) -> NDArray[np.uint8]:
    out = np.full(PackedShape(rows, columns).codes, 0xFF, np.uint8)
    _native.repack(row_type, data, out, rows, columns, **options)
    return out


@pytest.mark.parametrize("row_type", BLOCK)
@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), blocks=st.integers(1, 7), seed=st.integers(0, 1 << 30), threads=st.integers(1, 3))
def test_rows_become_blocks_byte_for_byte(row_type: str, rows: int, blocks: int, seed: int, threads: int) -> None:
    rng = np.random.default_rng(seed)
    columns = blocks * BLOCK[row_type] if row_type != "I8" else int(rng.integers(1, 300))
    codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
    data = stored(codes, row_type)
    np.testing.assert_array_equal(repacked(data, row_type, rows, columns, threads=threads), pack_codes(codes))
    order = rng.permutation(rows).astype(np.int32)
    out = repacked(data, row_type, rows, columns, order=order, threads=threads)
    np.testing.assert_array_equal(out, pack_codes(codes[order]))


@pytest.mark.parametrize("row_type", ["I8", "TQ2_0", "Q4_0", "I2_S"])
def test_what_is_no_ternary_value_is_refused(row_type: str) -> None:
    data = stored(np.zeros((20, 256), np.int8), row_type).copy()
    data[-3 if row_type != "TQ2_0" else -5] = 0xFD  # -3, and two bits of 3
    with pytest.raises(FormatError, match="somewhere: row 19: found a code that is none of"):
        repacked(data, row_type, 20, 256, place="somewhere")


def test_wrong_arguments_are_refused() -> None:
    data = np.zeros(16 * 66, np.uint8)
    with pytest.raises(InputError, match="row type: found 'Q5_0', allowed are"):
        repacked(data, "Q5_0", 16, 256)
    with pytest.raises(InputError, match="columns: found 200, this row type has blocks of 256"):
        repacked(data, "TQ2_0", 16, 200)
    with pytest.raises(InputError, match="found 1056 bytes, 15 rows of 256 columns in TQ2_0 have 990"):
        repacked(data, "TQ2_0", 15, 256)
    for rows in (0, -1, 1 << 40):
        with pytest.raises(InputError, match=f"rows: found {rows}"):
            _native.repack("TQ2_0", data, np.zeros((1, 4, 256), np.uint8), rows, 256)
    with pytest.raises(InputError, match=r"out: an array \[1, 4, 256\] is needed"):
        _native.repack("TQ2_0", data, np.zeros((1, 3, 256), np.uint8), 16, 256)
    with pytest.raises(InputError, match="order: found 16 at index 0"):
        repacked(data, "TQ2_0", 16, 256, order=np.full(16, 16, np.int32))
    with pytest.raises(InputError, match="order: found 3 indices for 16 rows"):
        repacked(data, "TQ2_0", 16, 256, order=np.zeros(3, np.int32))
    with pytest.raises(InputError, match="threads: found -1"):
        repacked(data, "TQ2_0", 16, 256, threads=-1)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 40), columns=st.integers(1, 200), power=st.integers(-45, 38), seed=st.integers(0, 1 << 30))
def test_tables_in_q8_are_those_of_numpy(rows: int, columns: int, power: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(under="ignore"):
        values = (rng.integers(-9, 10, (rows, columns)) * (10.0**power / 9)).astype(np.float32)
    values[0] = 0
    codes, scales = pack_table(quantize_table(values, "q8"))
    out, found = np.full(codes.shape, 7, np.uint8), np.full(rows, 7, np.float32)
    _native.pack_q8(values, out, found, threads=2)
    np.testing.assert_array_equal(found, scales)
    np.testing.assert_array_equal(out, codes)


def test_tables_that_cannot_be_are_refused() -> None:
    values, codes, scales = np.ones((3, 5), np.float32), np.zeros((1, 1, 1024), np.uint8), np.zeros(3, np.float32)
    for wrong in (np.nan, np.inf, -np.inf):
        values[2, 4] = wrong
        with pytest.raises(FormatError, match="here: row 2: found an infinity or NaN"):
            _native.pack_q8(values, codes, scales, "here")
    with pytest.raises(InputError, match=r"codes: an array \[1, 1, 1024\] is needed"):
        _native.pack_q8(values, codes[:, :, :512].copy(), scales)
    with pytest.raises(InputError, match=r"scales: an array \[3\] is needed"):
        _native.pack_q8(values, codes, scales[:2])
    with pytest.raises(InputError, match="values: found 0 x 5"):
        _native.pack_q8(values[:0], codes, scales)
