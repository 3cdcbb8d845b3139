"""The bytes of ternary types: against a slow reader of the layouts, against the gguf package, and as they were once.

The slow reader takes one element at a time from the place that docs/interchange.md states. Where the package has a
rule of its own it must find the same bytes and the same values. The hashes are of bytes written once and checked then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import gguf
import numpy as np
import pytest
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.ternary_types import FLOATS, TERNARY_TYPES, I2sLayout, decode, encode, rounded
from wrinklefree.artifact.gguf.types import TYPES, dequantize
from wrinklefree.errors import FormatError, InputError

BLOCKS = [name for name in TERNARY_TYPES if name not in (*FLOATS, "I2_S")]
LAYOUTS: tuple[I2sLayout, ...] = ("x86", "arm", "rows")


def _codes(rows: int, columns: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)


def _scales(rows: int, groups: int, seed: int = 0) -> NDArray[np.float32]:
    """Every kind of float16 above zero, subnormals among them."""
    bits = np.random.default_rng(seed).integers(1, 0x7C00, (rows, groups)).astype(np.uint16)
    bits[0, 0] = 1  # the smallest there is
    return bits.view(np.float16).astype(np.float32)


def _trit(byte: int, index: int) -> int:
    """The trit ``index`` of a byte: three times what is left, its carry beyond 8 bits."""
    for _ in range(index):
        byte = byte * 3 & 255
    return (byte * 3 >> 8) - 1


def _from_trits(runs: tuple[int, ...], last: int) -> Callable[[NDArray[np.uint8], int], int]:
    def code(block: NDArray[np.uint8], element: int) -> int:
        begin = 0
        for width, held in (*((run, 5) for run in runs), (last, 4)):
            if element < width * held:
                return _trit(int(block[begin + element % width]), element // width)
            begin, element = begin + width, element - width * held
        raise AssertionError

    return code


# Block and element -> code, read off the layouts one element at a time; a float16 scale comes first or last.
SLOW: dict[str, tuple[bool, Callable[[NDArray[np.uint8], int], int]]] = {
    "TQ1_0": (False, _from_trits((32, 16), 4)),
    "PTQ1_0": (False, _from_trits((16, 8), 2)),
    "TQ2_0": (False, lambda block, e: (int(block[e // 128 * 32 + e % 32]) >> (e % 128 // 32 * 2) & 3) - 1),
    "Q2_0": (True, lambda block, e: (int(block[e // 4]) >> (e % 4 * 2) & 3) - 1),
    "Q2_0_G128": (True, lambda block, e: (int(block[e // 4]) >> (e % 4 * 2) & 3) - 1),
    "PQ2_0": (True, lambda block, e: (int(block[e // 4]) >> (e % 4 * 2) & 3) - 1),
    "Q4_0": (True, lambda block, e: (int(block[e % 16]) >> (e // 16 * 4) & 15) - 8),
    "Q8_0": (True, lambda block, e: int(block.view(np.int8)[e])),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_element_stands_where_the_layout_says(name: str) -> None:
    kind, (scale_first, code_at) = TYPES[name], SLOW[name]
    codes, scales = _codes(3, 512), _scales(3, 512 // kind.block_elements)
    blocks = encode(kind, codes, scales).reshape(-1, kind.block_bytes)
    for number, block in enumerate(blocks):
        body, tail = (block[2:], block[:2]) if scale_first else (block[:-2], block[-2:])
        assert tail.copy().view(np.float16)[0] == scales.reshape(-1)[number]
        expected = codes.reshape(len(blocks), -1)[number]
        assert [code_at(body, element) for element in range(kind.block_elements)] == expected.tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_stands_where_i2_s_says(layout: I2sLayout) -> None:
    codes = _codes(8, 256)
    data = encode(TYPES["I2_S"], codes, np.array([0.3], np.float32), layout)
    assert data[-32:-28].copy().view(np.float32)[0] == np.float32(0.3) and data.size == 8 * 256 // 4 + 32
    assert not data[-28:].any()
    for row in range(8):
        for column in range(256):
            if layout == "rows":
                byte, quarter = row // 4 * 256 + column, row % 4
            else:
                run = 32 if layout == "x86" else 16
                byte = row * 64 + column // (4 * run) * run + column % run
                quarter = column % (4 * run) // run
            assert (int(data[byte]) >> (6 - 2 * quarter) & 3) - 1 == codes[row, column]


@given(
    name=st.sampled_from(BLOCKS),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    grain=st.sampled_from(["tensor", "row", "block"]),
)
@settings(max_examples=120, deadline=None)
def test_codes_and_scales_come_back_bit_for_bit(name: str, rows: int, blocks: int, seed: int, grain: str) -> None:
    kind = TYPES[name]
    codes = _codes(rows, blocks * kind.block_elements, seed)
    all_scales = _scales(rows, blocks, seed)
    scales = {"tensor": all_scales[:1, 0], "row": all_scales[:, 0], "block": all_scales}[grain]
    data = encode(kind, codes, scales)
    found, found_scales = decode(kind, data, codes.shape)
    expected = np.broadcast_to(scales.reshape(-1, 1) if scales.ndim == 1 else scales, (rows, blocks))
    assert np.array_equal(found, codes)
    assert found_scales.tobytes() == np.ascontiguousarray(expected).tobytes()
    if name != "PTQ1_0":
        values = codes.reshape(rows, blocks, -1) * expected[:, :, None]
        assert np.array_equal(dequantize(kind, data, codes.shape), values.reshape(codes.shape))


@given(
    name=st.sampled_from(["TQ1_0", "TQ2_0"]), rows=st.integers(1, 4), blocks=st.integers(1, 3), seed=st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_the_package_finds_the_same_bytes_and_values(name: str, rows: int, blocks: int, seed: int) -> None:
    """Its rule divides by the largest value, which overflows for subnormals: those are compared by value alone."""
    kind, number = TYPES[name], gguf.GGMLQuantizationType[name]
    codes, scales = _codes(rows, 256 * blocks, seed), _scales(rows, blocks, seed)
    data = encode(kind, codes, scales)
    values = (codes.reshape(rows, blocks, -1) * scales[:, :, None]).reshape(codes.shape)
    assert np.array_equal(quants.dequantize(data.reshape(rows, -1), number), values)
    usual = (scales >= 2**-14).reshape(-1)
    with np.errstate(all="ignore"):
        theirs = quants.quantize(values, number).reshape(-1, kind.block_bytes)
    assert np.array_equal(theirs[usual], data.reshape(-1, kind.block_bytes)[usual])


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_the_package_reads_what_it_would_round(name: str) -> None:
    codes, scales = _codes(4, 96), _scales(4, 3)
    data = encode(TYPES[name], codes, scales)
    values = (codes.reshape(4, 3, -1) * scales[:, :, None]).reshape(4, 96)
    assert np.array_equal(quants.dequantize(data.reshape(4, -1), gguf.GGMLQuantizationType[name]), values)


def test_ternary_values_that_another_program_rounded_are_still_seen() -> None:
    """The package stores 127 in Q8_0 where a code is 1: the scale is then 127 times what the block says."""
    codes = _codes(4, 64)
    codes[0, :32] = 0
    theirs = quants.quantize(codes * np.float32(0.5), gguf.GGMLQuantizationType.Q8_0)
    found, scales = decode(TYPES["Q8_0"], theirs.reshape(-1), (4, 64))
    assert np.array_equal(found, codes) and scales[0, 0] == 0
    values = (found.reshape(4, 2, 32) * scales[:, :, None]).reshape(4, 64)
    assert np.array_equal(values, quants.dequantize(theirs, gguf.GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("name", FLOATS)
def test_plain_numbers_hold_ternary_values(name: str) -> None:
    codes, scales = _codes(3, 192), np.array([[0.5, 2**-20, 3.0]] * 3, np.float32)
    data = encode(TYPES[name], codes, scales)
    found, found_scales = decode(TYPES[name], data, codes.shape)
    assert np.array_equal(found, codes) and np.array_equal(found_scales, scales)


def test_what_no_type_can_hold_is_refused() -> None:
    codes = _codes(4, 256)
    one = np.ones(1, np.float32)
    for message, name, given_codes, scales in (
        ("never latent", "TQ1_0", codes.astype(np.float32), one),
        ("from -2", "TQ2_0", np.full((4, 256), -2, np.int8), one),
        ("no whole number", "TQ1_0", codes[:, :128], one),
        ("is none", "TQ2_0", codes, np.full(1, 0.3, np.float32)),
        ("is none", "Q8_0", codes, np.full(1, 1e6, np.float32)),
        ("finite", "Q8_0", codes, np.full(1, np.inf, np.float32)),
        ("change every 128", "TQ1_0", codes, np.array([[1, 2]] * 4, np.float32)),
        ("one scale for a whole", "I2_S", codes, np.arange(4, dtype=np.float32)),
        ("multiple of 128", "I2_S", codes[:, :64], one),
        ("holds no ternary", "Q4_K", codes, one),
        ("found scales", "TQ1_0", codes, np.ones(3, np.float32)),
        ("BF16 cannot", "BF16", codes, np.full(1, 0.3, np.float32)),
    ):
        with pytest.raises(InputError, match=message):
            encode(TYPES[name], given_codes, scales)
    with pytest.raises(InputError, match="multiple of 4"):
        encode(TYPES["I2_S"], _codes(3, 128), one, "rows")


@pytest.mark.parametrize("name", ["TQ2_0", "Q2_0", "PQ2_0", "I2_S", "Q4_0", "Q8_0", "F32"])
def test_bytes_that_are_not_ternary_are_refused(name: str) -> None:
    kind = TYPES[name]
    data = encode(kind, _codes(4, 256), np.full(1, 0.5, np.float32))
    spoilt = data.copy()
    spoilt[7] |= 3
    spoilt[8] = 0x37
    with pytest.raises(FormatError, match="ternary"):
        decode(kind, spoilt, (4, 256))
    with pytest.raises(FormatError, match="bytes"):
        decode(kind, data[:-1], (4, 256))


def test_a_scale_that_is_no_number_is_refused_and_zero_clears_the_codes() -> None:
    data = encode(TYPES["TQ2_0"], _codes(1, 256), np.ones(1, np.float32))
    for half, message in ((0x7E00, "finite"), (0x7C00, "finite")):
        data[-2:] = np.array([half], "<u2").view(np.uint8)
        with pytest.raises(FormatError, match=message):
            decode(TYPES["TQ2_0"], data, (1, 256))
    data[-2:] = 0
    codes, scales = decode(TYPES["TQ2_0"], data, (1, 256))
    assert not codes.any() and scales.tolist() == [[0.0]]


def test_scales_are_rounded_only_where_little_is_lost() -> None:
    scales = np.array([0.3, 1e-4, 65504, 0], np.float32)
    assert np.array_equal(rounded(scales), scales.astype(np.float16).astype(np.float32))
    for beyond in (1e5, 1e-7, 1e-9):
        with pytest.raises(InputError, match="float16"):
            rounded(np.array([1, beyond], np.float32))


GOLDEN = {
    "TQ1_0": "f798019ab587e7ee5fa77903ee3e1f10",
    "PTQ1_0": "b628d3e3a6ff09d0d076339fbd21ebb9",
    "TQ2_0": "4f6d462a2962e85cf27d0c7469f272de",
    "Q2_0": "76e584a43f47b99a6ab81ea99019321f",
    "Q2_0_G128": "a064cd1662d8ead8ed3ef4db1e4af918",
    "PQ2_0": "a064cd1662d8ead8ed3ef4db1e4af918",
    "Q4_0": "40b1e18e83e6e2889595efd25ed773ec",
    "Q8_0": "54dd961a3c16f723afb1d545be30d89a",
    "I2_S": "d2b1429e0466c2e05f3f8b63946e66a7",
    "F32": "ca5d8e253e8a50bd700869d9e22fd648",
    "F16": "8dba77f203976a53ef1039500ec3d439",
    "BF16": "2949a8eaecb3ce24f8d326b4fc951950",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_bytes_of_a_type_never_change(name: str) -> None:
    row = np.arange(512, dtype=np.int64)
    codes = ((np.stack([row * row + row // 7, row * 5 + row // 11, row // 3, row]) % 3) - 1).astype(np.int8)
    data = encode(TYPES[name], codes, np.array([0.75], np.float32))
    assert hashlib.sha256(data.tobytes()).hexdigest()[:32] == GOLDEN[name]
