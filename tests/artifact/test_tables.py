"""Quantised tables: bytes against the sentences of tables.py, one by one; the fit against plain rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.artifact.tables import QuantizedTable, TableShape, pack_table, quantize_table, unpack_table
from wrinklefree.errors import FormatError, InputError

FORMATS: list[Any] = ["q8", "q6", "q4"]
WIDTH = {"q8": 0, "q6": 64, "q4": 32}
RANGE = {"q8": (-127, 127), "q6": (-32, 31), "q4": (-8, 7)}
BYTES = {"q8": 1024, "q6": 768, "q4": 512}
SIZES = [(1, 1), (16, 64), (37, 72), (18, 200), (5, 97)]


def _random(rows: int, columns: int, format: Any) -> QuantizedTable:
    rng = np.random.default_rng(rows * 1000 + columns)
    least, most = RANGE[format]
    numbers = rng.integers(least, most + 1, (rows, columns)).astype(np.int8)
    if format == "q8":
        return QuantizedTable(format, numbers, rng.random(rows).astype(np.float32))
    scales = rng.normal(size=(rows, -(-columns // WIDTH[format]))).astype(np.float16)
    return QuantizedTable(format, numbers, scales)


def _stated(numbers: Any, format: str) -> Any:
    """The bytes of each block, as the docstring states them."""
    rows, columns = numbers.shape

    def shifted(row: int, column: int) -> int:
        offset = {"q8": 128, "q6": 32, "q4": 8}[format]
        return offset + (int(numbers[row, column]) if row < rows and column < columns else 0)

    blocks = np.zeros((-(-rows // 16), -(-columns // 64), BYTES[format]), np.uint8)
    for (b, c, at), _ in np.ndenumerate(blocks):
        r, j = 16 * b + at // 4 % 16, at % 4
        k = 64 * c + 4 * (at // 64) + j
        if format == "q8":
            byte = shifted(r, k)
        elif at < 512:
            byte = shifted(r, k) % 16 + 16 * (shifted(r, k + 32) % 16)
        else:
            first = 64 * c + 4 * ((at - 512) // 64) + j
            byte = sum(shifted(r, first + 16 * p) // 16 << 2 * p for p in range(4))
        blocks[b, c, at] = byte
    return blocks


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_bytes_are_as_stated(rows: int, columns: int, format: Any) -> None:
    table = _random(rows, columns, format)
    codes, scales = pack_table(table)
    shape = TableShape(rows, columns, format)
    assert (codes.shape, codes.dtype, scales.shape) == (shape.codes, np.uint8, shape.scales)
    np.testing.assert_array_equal(codes, _stated(table.numbers, format))
    again = unpack_table(codes, scales, rows, columns, format)
    np.testing.assert_array_equal(again.numbers, table.numbers)
    np.testing.assert_array_equal(again.scales, table.scales)
    if format != "q8":
        assert scales[0, 0, 0] == table.scales[0, 0]
        assert scales.astype(np.float32).sum() == pytest.approx(table.scales.astype(np.float32).sum(), abs=1e-2)


@pytest.mark.parametrize("format", FORMATS)
def test_values_are_numbers_times_scales(format: Any) -> None:
    table = _random(5, 97, format)
    values = table.values()
    for row, column in [(0, 0), (4, 96), (2, 63), (3, 64), (1, 32)]:
        scale = table.scales[row] if format == "q8" else table.scales[row, column // WIDTH[format]]
        assert values[row, column] == np.float32(table.numbers[row, column]) * np.float32(scale)


@pytest.mark.parametrize("format", ["q6", "q4"])
def test_the_fit_is_better_than_plain_rounding(format: Any) -> None:
    """Against scale = max|w| / largest, on average over the groups."""
    weight = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    width, largest = WIDTH[format], RANGE[format][1]
    groups = weight.reshape(64, -1, width)
    plain = np.abs(groups).max(axis=2, keepdims=True) / largest
    plain_error = ((np.rint(groups / plain) * plain - groups) ** 2).sum(axis=2)
    table = quantize_table(weight, format)
    error = ((table.values() - weight) ** 2).reshape(groups.shape).sum(axis=2)
    assert error.mean() < 0.95 * plain_error.mean()
    # Numbers are the nearest to the weight for their scale, ends of the range aside.
    scales = np.repeat(table.scales.astype(np.float32), width, axis=1)
    nearest = np.clip(np.rint(weight * (1 / scales)), *RANGE[format])
    np.testing.assert_array_equal(table.numbers, nearest)


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_format_can_hold_it_keeps(format: Any) -> None:
    """Numbers that span the range times a power of two come back exactly; so does a row of zeros."""
    least, most = RANGE[format]
    numbers = np.random.default_rng(1).integers(least, most + 1, (20, 128)).astype(np.float32)
    numbers[:, ::32] = least
    numbers[7] = 0
    weight = numbers * np.float32(0.125)
    np.testing.assert_array_equal(quantize_table(weight, format).values(), weight)


@given(st.integers(1, 40), st.integers(1, 150), st.sampled_from(FORMATS), st.integers(0, 2**32 - 1))
def test_errors_stay_within_half_a_step(rows: int, columns: int, format: Any, seed: int) -> None:
    """Of any table: a number inside the range is off by at most half its scale."""
    rng = np.random.default_rng(seed)
    weight = (rng.standard_t(3, (rows, columns)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    table = unpack_table(*pack_table(quantize_table(weight, format)), rows, columns, format)
    inside = (table.numbers > RANGE[format][0]) & (table.numbers < RANGE[format][1])
    if format == "q8":
        scales = np.broadcast_to(table.scales[:, None], weight.shape)
    else:
        scales = np.repeat(np.abs(table.scales.astype(np.float32)), WIDTH[format], axis=1)[:, :columns]
    # A millionth of the scale for each float32 operation on numbers up to 127.
    assert (np.abs(table.values() - weight) <= scales * (0.5 + 127 * 4e-6))[inside].all()


@pytest.mark.parametrize("format", ["q6", "q4"])
def test_moments_lower_the_error_of_products(format: Any) -> None:
    """Against the plain fit, on inputs like those of the moments: a few long directions, correlated columns."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(200, 96)).astype(np.float32)
    mixing = rng.normal(size=(96, 96)) * np.geomspace(10, 0.1, 96)[:, None]
    seen, new = (rng.normal(size=(count, 96)) @ mixing for count in (400, 100))
    moments = seen.T @ seen / len(seen)

    def error(table: QuantizedTable) -> float:
        return float(((new @ (table.values() - weight).T) ** 2).mean())

    plain, fitted = quantize_table(weight, format), quantize_table(weight, format, moments)
    assert error(fitted) < 0.5 * error(plain)
    least, most = RANGE[format]
    assert least <= fitted.numbers.min() and fitted.numbers.max() <= most
    again = quantize_table(weight, format, moments)
    np.testing.assert_array_equal(again.numbers, fitted.numbers)


def test_moments_that_say_nothing_leave_the_rounding_plain() -> None:
    """Independent columns of equal size: there is nothing to compensate, so each number is the nearest."""
    weight = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    table = quantize_table(weight, "q4", np.eye(64))
    scales = np.repeat(table.scales.astype(np.float32), 32, axis=1)
    np.testing.assert_array_equal(table.numbers, np.clip(np.rint(weight * (1 / scales)), -8, 7))
    for moments in (np.zeros((64, 64)), np.ones((64, 64))):
        assert np.isfinite(quantize_table(weight, "q4", moments).values()).all()


def test_float16_tables_are_rounded() -> None:
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    codes, scales = pack_table(quantize_table(weight, "f16"))
    assert scales is None
    np.testing.assert_array_equal(codes, weight.astype(np.float16))
    np.testing.assert_array_equal(unpack_table(codes, None, 5, 7, "f16").values(), weight.astype(np.float16))


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match="3 dimensions"):
        quantize_table(np.zeros((2, 2, 2), np.float32), "q8")
    with pytest.raises(InputError, match="beyond float16"):
        quantize_table(np.full((2, 2), 1e5, np.float32), "f16")
    with pytest.raises(InputError, match=r"moments: found shape \(3, 3\)"):
        quantize_table(np.ones((2, 40), np.float32), "q4", np.eye(3))
    for value, message in ((np.nan, "infinity or NaN"), (1e9, "too large")):
        with pytest.raises(InputError, match=message):
            quantize_table(np.full((2, 40), value, np.float32), "q4")
    codes, scales = pack_table(_random(18, 200, "q4"))
    with pytest.raises(FormatError, match=r"codes: found shape .* needs \(2, 4, 768\)"):
        unpack_table(codes, scales, 18, 200, "q6")
    with pytest.raises(FormatError, match=r"scales: found shape .* needs \(2, 8, 16\)"):
        unpack_table(codes, scales[:, :4], 18, 200, "q4")


@pytest.mark.parametrize("peak", [2.0**-149, 3 * 2.0**-149, 190 * 2.0**-149, 2.0**-127, 2.0**-120, 3e38])
def test_the_smallest_and_largest_rows_have_numbers_in_range(peak: float) -> None:
    """Their quotient by 127 is no number that could be divided by: 190 / 1 is beyond int8, 3 / 0 infinite."""
    row = (np.array([[1.0, -1.0, 0.5, 0.0]]) * peak).astype(np.float32)
    table = quantize_table(row, "q8")
    assert table.scales is not None and table.scales[0] >= np.finfo(np.float32).tiny
    assert np.abs(table.numbers.astype(int)).max() <= 127
    assert np.abs(table.values() - row).max() <= table.scales[0] * np.float32(0.501)  # half, and float32's rounding
