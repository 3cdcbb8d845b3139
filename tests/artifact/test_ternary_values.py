"""Exactly ternary or not, and the coarsest scales: compared with a plain loop over groups, values and grains."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.artifact.ternary_values import GRAINS, Grain, coarsest, common_grain, exact_ternary, regroup
from wrinklefree.errors import FormatError


def _values(rows: int, columns: int, grain: Grain, seed: int) -> NDArray[np.float32]:
    """Codes times float16 scales of a grain, with groups and rows of zeros."""
    random = np.random.default_rng(seed)
    codes = random.integers(-1, 2, (rows, columns))
    codes[:, :64] *= random.integers(0, 2, (rows, 1))
    scales = random.integers(1, 0x7C00, (rows, columns)).astype(np.uint16).view(np.float16).astype(np.float32)
    place = np.arange(columns) // grain.group_size if grain.group_size else np.zeros(columns, int)
    rows_of = np.arange(rows) if grain.granularity != "tensor" else np.zeros(rows, int)
    return codes.astype(np.float32) * scales[rows_of[:, None], place[None, :]]


def _slow(values: NDArray[np.float32], width: int) -> bool:
    for row in values.tolist():
        for begin in range(0, len(row), width):
            if len({abs(value) for value in row[begin : begin + width]} - {0.0}) > 1:
                return False
    return True


@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 48, 64, 192, 256, 576]),
    grain=st.sampled_from(GRAINS),
    seed=st.integers(0, 2**32 - 1),
    spoil=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_detection_is_exact(rows: int, columns: int, grain: Grain, seed: int, spoil: bool) -> None:
    values = _values(rows, columns, grain, seed)
    if spoil:
        at = np.random.default_rng(seed).integers(0, values.size)
        values.flat[at] = np.nextafter(values.flat[at], np.float32(1e9))
    width = 64 if columns % 64 == 0 else columns
    found = exact_ternary(values)
    assert (found is not None) == _slow(values, width)
    if found is not None:
        codes, scales = found
        again = (codes.reshape(rows, -1, width) * scales[:, :, None]).reshape(rows, columns)
        assert again.tobytes() == (values + np.float32(0)).tobytes()
        assert (scales >= 0).all()


@given(rows=st.integers(1, 4), columns=st.sampled_from([64, 192, 256, 576]), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=80, deadline=None)
def test_the_coarsest_grain_is_found_and_means_the_same(rows: int, columns: int, seed: int) -> None:
    grain = GRAINS[seed % len(GRAINS)]
    values = _values(rows, columns, grain, seed)
    found = exact_ternary(values)
    assert found is not None
    codes, fine = found
    granularity, group_size, scales = coarsest(fine, 64)
    assert GRAINS.index(Grain(granularity, group_size)) <= GRAINS.index(grain)
    if granularity == "group":
        spread = np.repeat(scales, group_size, axis=1)[:, :columns]
    else:
        spread = np.broadcast_to(scales[:, None], (rows, columns))
    assert np.array_equal(codes * spread, values)
    # Nothing coarser holds it: some row or group would need two scales.
    for coarser in GRAINS[: GRAINS.index(Grain(granularity, group_size))]:
        size = coarser.group_size or columns
        pieces = [values] if coarser.granularity == "tensor" else list(values)
        parts = [p[..., b : b + size] for p in pieces for b in range(0, columns, size)]
        assert any(len(set(np.abs(part[part != 0]).tolist())) > 1 for part in parts)


def test_zeros_signs_and_what_is_no_number() -> None:
    values = np.array([[0.5, -0.0, -0.5, 0.0]], np.float32)
    found = exact_ternary(values)
    assert found is not None and found[0].tolist() == [[1, 0, -1, 0]] and found[1].tolist() == [[0.5]]
    zeros = exact_ternary(np.zeros((2, 64), np.float32))
    assert zeros is not None and not zeros[1].any() and coarsest(zeros[1], 64)[0] == "tensor"
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = np.zeros((2, 64), np.float32)
        spoilt[1, 3] = bad
        assert exact_ternary(spoilt) is None
    found = exact_ternary(values.astype(np.float16))
    assert found is not None and found[1].dtype == np.float32
    assert exact_ternary(np.empty((0, 64), np.float32)) is not None


def test_scales_beyond_float16_fit_rows_but_no_groups() -> None:
    odd = np.float32(0.3)
    assert coarsest(np.full((2, 4), odd), 64)[0] == "tensor"
    assert coarsest(np.array([[odd] * 4, [1] * 4], np.float32), 64)[0] == "row"
    with pytest.raises(FormatError, match="fit no grain"):
        coarsest(np.array([[odd, 1, 1, 1]], np.float32), 64)
    with pytest.raises(FormatError, match="fit no grain"):
        coarsest(np.array([[1, 2, 1, 1]], np.float32), 32)


def test_groups_of_zeros_take_the_scale_beside_them() -> None:
    scales = np.array([[0, 2, 2, 0], [0, 0, 2, 2]], np.float32)
    assert coarsest(scales, 64)[2].tolist() == [2.0]
    halves = np.array([[1, 0, 2, 0]], np.float32)
    assert coarsest(halves, 64)[:2] == ("group", 128) and coarsest(halves, 64)[2].tolist() == [[1.0, 2.0]]


def test_one_grain_for_all_layers() -> None:
    tensor, row = np.ones(1, np.float32), np.array([1, 2], np.float32)
    group = np.array([[1, 2], [1, 2]], np.float32)
    assert common_grain([("a", tensor, (2, 256)), ("b", row, (2, 256))]) == Grain("row")
    grain = common_grain([("a", tensor, (2, 256)), ("b", row, (2, 576)), ("c", group, (2, 256))])
    assert grain == Grain("group", 128)
    again = regroup(row, (2, 576), grain)
    assert again is not None and again.tolist() == [[1.0] * 5, [2.0] * 5]
    with pytest.raises(FormatError, match=r"^b: "):
        common_grain([("a", group, (2, 256)), ("b", np.float32([0.3]), (2, 256))])
