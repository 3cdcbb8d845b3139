"""The ternary layouts against the sentences of packing.py, byte by byte with plain integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wrinklefree.artifact.packing import (
    DENSE_LAYOUT,
    LAYOUT,
    LAYOUTS,
    PackedShape,
    pack_codes,
    pack_group_scales,
    unpack_codes,
    unpack_group_scales,
)
from wrinklefree.errors import FormatError, InputError

SIZES = [(1, 1), (16, 64), (5, 65), (37, 330), (16, 320), (33, 704), (3, 1000)]


def _random(rows: int, columns: int) -> Any:
    return np.random.default_rng(rows * 1000 + columns).integers(-1, 2, (rows, columns)).astype(np.int8)


def _stated(ternary: Any, layout: str) -> list[list[int]]:
    """The bytes of each row of blocks, as the docstring states them."""
    rows, columns = ternary.shape

    def code(row: int, column: int) -> int:
        return int(ternary[row, column]) + 1 if row < rows and column < columns else 1

    lines = []
    blocks = -(-columns // 64)
    for b in range(-(-rows // 16)):
        line = []
        fives = blocks // 5 if layout == DENSE_LAYOUT else 0
        for s in range(fives):
            for at in range(1024):
                d, r, j = at // 64, at // 4 % 16, at % 4
                n = 0
                for p in range(5):
                    n = 3 * n + code(16 * b + r, 64 * (5 * s + p) + 4 * d + j)
                line.append(-(-256 * n // 243))
        for c in range(5 * fives, blocks):
            for at in range(256):
                d, r, j = at // 64, at // 4 % 16, at % 4
                line.append(sum(code(16 * b + r, 64 * c + 16 * p + 4 * d + j) << 2 * p for p in range(4)))
        lines.append(line)
    return lines


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_bytes_are_as_stated(rows: int, columns: int, layout: Any) -> None:
    ternary = _random(rows, columns)
    packed = pack_codes(ternary, layout)
    assert packed.shape == PackedShape(rows, columns, layout).codes and packed.dtype == np.uint8
    np.testing.assert_array_equal(packed.reshape(len(packed), -1), _stated(ternary, layout))
    np.testing.assert_array_equal(unpack_codes(packed, rows, columns, layout), ternary)


def test_fewer_bits_are_1_6() -> None:
    shape = PackedShape(16, 640, DENSE_LAYOUT)
    assert 8 * int(np.prod(shape.codes)) / (16 * 640) == pytest.approx(1.6)
    assert 8 * int(np.prod(PackedShape(16, 640).codes)) / (16 * 640) == pytest.approx(2.0)


def test_every_byte_of_five_codes_is_read_or_refused() -> None:
    """243 of the 256 values stand for five codes, each for its own; the other 13 are refused."""
    seen = set()
    for value in range(256):
        packed = np.full((1, 1024), value, np.uint8)
        try:
            codes = unpack_codes(packed, 16, 320, DENSE_LAYOUT)
        except FormatError:
            continue
        assert (codes.reshape(16, 5, 64) == codes[:1, ::64].reshape(1, 5, 1)).all()
        seen.add(tuple(codes[0, ::64]))
    assert len(seen) == 243


def test_wrong_values_and_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="outside -1, 0, 1"):
        pack_codes(np.full((2, 2), 2, np.int8))
    with pytest.raises(InputError, match="1 dimensions"):
        pack_codes(np.zeros(3, np.int8))
    packed = pack_codes(_random(5, 330))
    with pytest.raises(FormatError, match="5 x 384 needs"):
        unpack_codes(packed[:, :5], 5, 384)
    with pytest.raises(FormatError, match="found shape"):
        unpack_codes(packed, 5, 330, DENSE_LAYOUT)
    packed[0, 1, 7] |= 3 << 4
    with pytest.raises(FormatError, match="bit pattern 3"):
        unpack_codes(packed, 5, 330, LAYOUT)


def test_group_scales_stand_beside_their_rows() -> None:
    scales = np.random.default_rng(0).random((37, 3)).astype(np.float16)
    stored = pack_group_scales(scales)
    assert stored.shape == (3, 3, 16)
    assert stored[1, 2, 4] == scales[20, 2] and stored[2, 0, 5] == 0
    np.testing.assert_array_equal(unpack_group_scales(stored, 37), scales)
