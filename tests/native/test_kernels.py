"""Every kernel table this machine can run against NumPy, through the byte layout as `packing.py` states it.

Integer products must be equal. Scaled products: float32 sums of G scaled integers are off by at most
(G + 4) * 2^-24 of the sum of their magnitudes: a rounding for each integer, product and addition, one for the token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.artifact import packing, tables
from wrinklefree.errors import FormatError

native = pytest.importorskip("wrinklefree._native", reason="native kernels: not built, not checked")
kernels = native.kernels
TABLES = kernels.runnable()
EPSILON = 2.0**-24


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _random_ternary(rng: np.random.Generator, rows: int, columns: int) -> NDArray[np.int8]:
    return rng.integers(-1, 2, (rows, columns)).astype(np.int8)


def _quantised(rng: np.random.Generator, tokens: int, columns: int) -> tuple[NDArray[Any], ...]:
    """Random q int8 [T, C * 64] with zeros behind the columns, block sums [T, C], and token scales [T]."""
    blocks = -(-columns // 64)
    q = np.zeros((tokens, blocks * 64), np.int8)
    q[:, :columns] = rng.integers(-127, 128, (tokens, columns))
    sums = q.reshape(tokens, blocks, 64).sum(axis=2, dtype=np.int32)
    return q, sums, rng.uniform(0.001, 0.1, tokens).astype(np.float32)


def _products(ternary: NDArray[np.int8], q: NDArray[np.int8]) -> NDArray[np.int32]:
    return q[:, : ternary.shape[1]].astype(np.int32) @ ternary.astype(np.int32).T


LAYOUTS = pytest.mark.parametrize("layout", packing.LAYOUTS)
PREFETCH = st.sampled_from([0, 512])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 1100),
    tokens=st.integers(1, 100),
    layout=st.sampled_from(packing.LAYOUTS),
    prefetch=PREFETCH,
    seed=st.integers(0, 2**32 - 1),
)
def test_integer_products_are_exact(
    rows: int, columns: int, tokens: int, layout: packing.Layout, prefetch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ternary = _random_ternary(rng, rows, columns)
    q, sums, _ = _quantised(rng, tokens, columns)
    packed = packing.pack_codes(ternary, layout)
    for name in TABLES:
        if name == "reference" and rows * columns * tokens > 500_000:
            continue  # plain loops: slow
        dots = kernels.ternary_dots(name, packed, rows, columns, q, sums, layout, prefetch)
        np.testing.assert_array_equal(dots, _products(ternary, q), err_msg=name)


@LAYOUTS
@pytest.mark.parametrize("table", TABLES)
def test_t19_sums_of_activations_are_computed_once(table: str, layout: packing.Layout) -> None:
    # The product with the codes 0, 1, 2 is that with -1, 0, 1 plus the sum of the activations, which quantisation gives
    # once for all rows and layers that read them. The kernel takes that sum as given: with another one every row is off
    # by the difference (or none, where the instruction takes signed codes), with the true one by nothing.
    rng = np.random.default_rng(5)
    rows, columns = 40, 700
    ternary = _random_ternary(rng, rows, columns)
    packed = packing.pack_codes(ternary, layout)
    for tokens in (1, 3, 20):
        x = rng.normal(size=(tokens, columns)).astype(np.float32)
        q, sums, _ = kernels.quantize(table, x)
        np.testing.assert_array_equal(sums, q.reshape(tokens, -1, 64).sum(axis=2, dtype=np.int32))
        wanted = _products(ternary, q)
        np.testing.assert_array_equal(kernels.ternary_dots(table, packed, rows, columns, q, sums, layout), wanted)
        off = wanted - kernels.ternary_dots(table, packed, rows, columns, q, sums + 1, layout)
        assert (off == off[0, 0]).all() and off[0, 0] in (0, sums.shape[1])
        assert (off[0, 0] == 0) == (table == "reference" or "neon" in table)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 1400), seed=st.integers(0, 2**32 - 1))
def test_one_layout_becomes_the_other_byte_for_byte(rows: int, columns: int, seed: int) -> None:
    ternary = _random_ternary(np.random.default_rng(seed), rows, columns)
    packed = {layout: packing.pack_codes(ternary, layout) for layout in packing.LAYOUTS}
    for layout, other in (packing.LAYOUTS, packing.LAYOUTS[::-1]):
        found = kernels.converted(packed[layout], rows, columns, layout)
        np.testing.assert_array_equal(found, packed[other].reshape(-1))


@pytest.mark.parametrize("place", [0, 1023, 1024, 2047, 2048, 2559])
def test_bytes_that_stand_for_no_codes_are_refused(place: int) -> None:
    """One row block of 12 column blocks is two superblocks and two blocks of two bits; every byte is tried there."""
    dense = packing.pack_codes(np.zeros((16, 768), np.int8), packing.DENSE_LAYOUT)
    assert dense.shape == (1, 2560)
    for byte in range(256):
        dense[0, place] = byte
        try:
            packing.unpack_codes(dense, 16, 768, packing.DENSE_LAYOUT)
        except FormatError:
            with pytest.raises(ValueError, match=r"stands for no five codes|bit pattern 3"):
                kernels.converted(dense, 16, 768, packing.DENSE_LAYOUT)
        else:
            kernels.converted(dense, 16, 768, packing.DENSE_LAYOUT)


@LAYOUTS
def test_the_largest_sums_do_not_overflow(table: str, layout: packing.Layout) -> None:
    """All weights +1 and all activations 127 over 6,912 columns: the case an int16 sum would lose first."""
    columns = 6912
    packed = packing.pack_codes(np.ones((5, columns), np.int8), layout)
    for tokens in (1, 4, 5, 33):
        for value in (127, -127):
            q = np.full((tokens, columns), value, np.int8)
            sums = np.full((tokens, columns // 64), 64 * value, np.int32)
            dots = kernels.ternary_dots(table, packed, 5, columns, q, sums, layout)
            assert (dots == value * columns).all()


@LAYOUTS
@pytest.mark.parametrize("group_size", packing.GROUP_SIZES)
@pytest.mark.parametrize("tokens", [1, 3, 7, 40])
def test_group_scales(table: str, group_size: int, tokens: int, layout: packing.Layout) -> None:
    rng = np.random.default_rng(group_size + tokens)
    rows, columns = 22, 600
    ternary = _random_ternary(rng, rows, columns)
    q, sums, token_scales = _quantised(rng, tokens, columns)
    scales = rng.uniform(0.01, 1.0, (rows, -(-columns // group_size))).astype(np.float16)
    stored = packing.pack_group_scales(scales).view(np.uint16)
    packed = packing.pack_codes(ternary, layout)
    y = kernels.ternary_gemm_groups(
        table, packed, rows, columns, stored, group_size, q, sums, token_scales, layout, 512
    )
    weight = ternary * np.repeat(scales.astype(np.float64), group_size, axis=1)[:, :columns]
    expected = q[:, :columns].astype(np.float64) @ weight.T * token_scales[:, None]
    magnitude = np.abs(q[:, :columns]).astype(np.float64) @ np.abs(weight).T * token_scales[:, None]
    assert (np.abs(y - expected) <= (scales.shape[1] + 4) * EPSILON * magnitude).all()


@LAYOUTS
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_row_scales(table: str, tokens: int, layout: packing.Layout) -> None:
    """One exact integer and two float32 products: equal to NumPy's up to two roundings on each side."""
    rng = np.random.default_rng(tokens)
    rows, columns = 17, 1100
    ternary = _random_ternary(rng, rows, columns)
    q, sums, token_scales = _quantised(rng, tokens, columns)
    row_scales = rng.uniform(0.01, 1.0, rows).astype(np.float32)
    packed = packing.pack_codes(ternary, layout)
    y = kernels.ternary_gemm_rows(table, packed, rows, columns, row_scales, q, sums, token_scales, layout)
    expected = _products(ternary, q) * row_scales.astype(np.float64) * token_scales[:, None].astype(np.float64)
    np.testing.assert_allclose(y, expected, rtol=4 * EPSILON, atol=0)


@settings(max_examples=60, deadline=None)
@given(columns=st.integers(1, 400), power=st.integers(-25, 20), seed=st.integers(0, 2**32 - 1))
def test_activations_are_quantised_bit_for_bit(columns: int, power: int, seed: int) -> None:
    """Equal to the float32 statement in kernels.h, which is what the torch student computes."""
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.normal(size=(3, columns)), power).astype(np.float32)
    x[1] = np.round(x[1] * 2) / 2  # ties
    x[2] = 0
    peak = np.maximum(np.abs(x).max(axis=1), np.float32(1e-5))
    codes = np.rint(x * (np.float32(127) / peak)[:, None])
    for name in TABLES:
        q, sums, scales = kernels.quantize(name, x)
        np.testing.assert_array_equal(q[:, :columns], codes, err_msg=name)
        assert not q[:, columns:].any()
        np.testing.assert_array_equal(sums, q.reshape(3, -1, 64).sum(axis=2, dtype=np.int32))
        np.testing.assert_array_equal(scales, peak / np.float32(127))


def _wide(x: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """15-bit activations x16 [T, D] and their scales [T], as kernels.h states them."""
    peak = np.maximum(np.abs(x).max(axis=1), np.float32(1e-5))
    factor = np.float32(16256) / peak
    return np.rint(x * factor[:, None]).astype(np.int64), peak / np.float32(16256)


@settings(max_examples=60, deadline=None)
@given(columns=st.integers(1, 400), power=st.integers(-25, 20), seed=st.integers(0, 2**32 - 1))
def test_wide_activations_are_quantised_bit_for_bit(columns: int, power: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.ldexp(rng.normal(size=(3, columns)), power).astype(np.float32)
    x[1] = np.round(x[1] * 2) / 2  # ties
    x[2] = 0
    codes, expected_scales = _wide(x)
    for name in TABLES:
        high, low, sums, scales = kernels.quantize_wide(name, x)
        found = 128 * high.astype(np.int64) + low
        np.testing.assert_array_equal(found[:, :columns], codes, err_msg=name)
        assert not found[:, columns:].any()
        assert high.min() >= -127 and low.min() >= -64 and low.max() <= 63
        np.testing.assert_array_equal(sums, found.reshape(3, -1, 32).sum(axis=2))
        np.testing.assert_array_equal(scales, expected_scales)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 700),
    tokens=st.integers(1, 40),
    prefetch=PREFETCH,
    seed=st.integers(0, 2**32 - 1),
)
def test_q8_tables_bit_for_bit(rows: int, columns: int, tokens: int, prefetch: int, seed: int) -> None:
    """An exact integer, rounded to float32 once, times the row's scale, times the token's."""
    rng = np.random.default_rng(seed)
    table = tables.quantize_table(rng.normal(size=(rows, columns)).astype(np.float32), "q8")
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    codes, scales = _wide(x)
    exact = codes @ table.numbers.astype(np.int64).T
    expected = exact.astype(np.float32) * table.scales * scales[:, None]
    packed, stored = tables.pack_table(table)
    for name in TABLES:
        if name == "reference" and rows * columns * tokens > 500_000:
            continue  # plain loops: slow
        y = kernels.table_gemm_rows(name, packed, rows, stored, x, prefetch)
        np.testing.assert_array_equal(y, expected, err_msg=name)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 400),
    tokens=st.integers(1, 20),
    format=st.sampled_from(["q6", "q4"]),
    prefetch=PREFETCH,
    seed=st.integers(0, 2**32 - 1),
)
def test_tables_with_group_scales(
    rows: int, columns: int, tokens: int, format: tables.TableFormat, prefetch: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = tables.quantize_table(rng.normal(size=(rows, columns)).astype(np.float32), format)
    x = rng.normal(size=(tokens, columns)).astype(np.float32)
    codes, scales = _wide(x)
    width = 64 if format == "q6" else 32
    expected, magnitude = np.zeros((2, tokens, rows))
    for group in range(table.scales.shape[1]):
        part = slice(group * width, (group + 1) * width)
        product = codes[:, part] @ table.numbers[:, part].astype(np.int64).T * table.scales[:, group].astype(np.float64)
        expected += product
        magnitude += np.abs(product)
    packed, stored = tables.pack_table(table)
    bound = (table.scales.shape[1] + 4) * EPSILON * magnitude * scales[:, None]
    for name in TABLES:
        y = kernels.table_gemm_groups(name, packed, rows, stored.view(np.uint16), x, prefetch)
        assert (np.abs(y - expected * scales[:, None]) <= bound).all(), name


@pytest.mark.parametrize("length", [1, 5, 64, 300])
def test_attention_is_softmax_of_scores(table: str, length: int) -> None:
    """1e-5: scores below 10 in magnitude, off by 64 roundings; weights and values of order one."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=s).astype(np.float32) for s in ((3, 64), (length, 64), (length, 64)))
    halves = [a.astype(np.float16) for a in (k, v)]
    (k8, k_scales), (v8, v_scales) = kernels.store_i8(table, k), kernels.store_i8(table, v)
    for keys, values, attend in (
        (k, v, lambda: kernels.attend_f32(table, q, k, v, 0.125)),
        (*halves, lambda: kernels.attend(table, q, *(a.view(np.uint16) for a in halves), 0.125)),
        (
            k8 * k_scales[:, None],
            v8 * v_scales[:, None],
            lambda: kernels.attend_i8(table, q, k8, v8, k_scales, v_scales, 0.125),
        ),
    ):
        scores = q @ keys.astype(np.float64).T * 0.125
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        wanted = weights / weights.sum(axis=1, keepdims=True) @ values.astype(np.float64)
        np.testing.assert_allclose(attend(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [1, 15, 64, 80])
def test_int8_keys_are_absmax_codes(table: str, width: int) -> None:
    """Rounding is half to even, as NumPy's; the factor is a float32 quotient in both."""
    x = np.random.default_rng(width).normal(size=(7, width)).astype(np.float32)
    codes, scales = kernels.store_i8(table, x)
    peaks = np.abs(x).max(axis=1)
    np.testing.assert_array_equal(codes, np.rint(x * (np.float32(127) / peaks)[:, None]))
    np.testing.assert_array_equal(scales, peaks / np.float32(127))


def test_half_precision_stores_as_numpy_does(table: str) -> None:
    rng = np.random.default_rng(0)
    x = np.ldexp(rng.normal(size=5000), rng.integers(-30, 17, 5000)).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(kernels.store_f16(table, x), expected)


def test_exponential_is_accurate_over_its_range(table: str) -> None:
    """silu(x) with up = 1 over [-80, 80]: the exponential's 2e-7 and four roundings stay below 1e-6."""
    x = np.linspace(-80, 80, 100_001, dtype=np.float32)
    expected = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(kernels.silu_mul(table, x, np.ones_like(x)), expected, rtol=1e-6, atol=0)


def test_rms_norm(table: str) -> None:
    rng = np.random.default_rng(1)
    x, weight = (rng.normal(size=577).astype(np.float32) for _ in range(2))
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5) * weight
    np.testing.assert_allclose(kernels.rms_norm(table, x, weight, 1e-5), expected, rtol=577 * EPSILON, atol=0)


def test_kernels_are_chosen_by_name_with_a_reason() -> None:
    name, reason = kernels.select("auto")
    assert name == TABLES[0] and len(reason) > 20
    assert kernels.select("reference") == ("reference", "asked for by name")
    with pytest.raises(ValueError, match='found "mmx": this build has no kernels of that name'):
        kernels.select("mmx")


def test_wrong_shapes_are_refused(table: str) -> None:
    codes = packing.pack_codes(np.ones((16, 320), np.int8))
    dense = packing.pack_codes(np.ones((16, 320), np.int8), packing.DENSE_LAYOUT)
    q, sums = np.zeros((2, 320), np.int8), np.zeros((2, 5), np.int32)
    with pytest.raises(ValueError, match="codes must have the shape"):
        kernels.ternary_dots(table, codes, 32, 320, q, sums)
    with pytest.raises(ValueError, match="codes must have the shape"):
        kernels.ternary_dots(table, dense, 16, 320, q, sums)
    with pytest.raises(ValueError, match="codes must have the shape"):
        kernels.ternary_dots(table, codes, 16, 320, q, sums, packing.DENSE_LAYOUT)
    with pytest.raises(ValueError, match="layout must be"):
        kernels.ternary_dots(table, codes, 16, 320, q, sums, "t2-r4c64")
    with pytest.raises(ValueError, match="q must have the shape"):
        kernels.ternary_dots(table, codes, 16, 320, q[:, :64].copy(), sums)
    with pytest.raises(ValueError, match="group_size must be 64, 128 or 256"):
        scales = np.zeros((1, 10, 16), np.uint16)
        kernels.ternary_gemm_groups(table, codes, 16, 320, scales, 32, q, sums, np.ones(2, np.float32))
    x = np.ones((1, 320), np.float32)
    with pytest.raises(ValueError, match="codes must have the shape"):
        kernels.table_gemm_rows(table, np.zeros((1, 5, 768), np.uint8), 16, np.ones(16, np.float32), x)
    with pytest.raises(ValueError, match="group_scales must have the shape"):
        kernels.table_gemm_groups(table, np.zeros((1, 5, 512), np.uint8), 16, np.zeros((1, 5, 16), np.uint16), x)


@LAYOUTS
def test_measured_limits_are_sensible(table: str, layout: packing.Layout) -> None:
    """Not timings: every figure is positive and the two of one product agree with each other."""
    peak = kernels.int8_gmac_per_second(table, 1, 0.02)
    seconds, gb, gmac = kernels.ternary_speed(table, 64, 640, 64, 2, 1, 1, 0.01, layout)
    assert kernels.read_gb_per_second(1, 1 << 22, 0.01) > 0 and peak > 0
    assert seconds > 0
    assert gmac == pytest.approx(64 * 640 * 2 / seconds * 1e-9)
    codes = np.prod(packing.PackedShape(64, 640, layout).codes)
    assert gb == pytest.approx((codes + 64 * 10 * 2) / seconds * 1e-9)
    for format in ("q8", "q6", "q4"):
        seconds, gb, gmac = kernels.head_speed(table, 100, 128, 1, 1, 0.01, format)
        assert seconds > 0 and gb > 0
        assert gmac == pytest.approx(100 * 128 / seconds * 1e-9)
