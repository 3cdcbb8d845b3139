"""Sizes and values of all types, from random bytes: ours against the gguf package's, piece by piece against at once."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants

from wrinklefree.artifact.gguf import types as types_module
from wrinklefree.artifact.gguf.types import BY_NUMBER, TYPES, dequantize
from wrinklefree.errors import FormatError

# The package gives Q8_1 forty bytes; ggml's struct has two float16 and 32 int8.
SHARED = [kind for kind in gguf.GGMLQuantizationType if kind.name in TYPES and kind.name != "Q8_1"]
VALUED = [
    kind
    for kind in SHARED
    if kind in quants._type_traits or kind.name in ("F32", "F16")  # which types it has a rule for is told nowhere else
]


def test_sizes_are_the_package_s() -> None:
    for kind in SHARED:
        ours = TYPES[kind.name]
        assert (ours.number, (ours.block_elements, ours.block_bytes)) == (kind.value, gguf.GGML_QUANT_SIZES[kind])
        assert BY_NUMBER[kind.value] is ours
    assert {kind.name for kind in gguf.GGMLQuantizationType} <= TYPES.keys()


@pytest.mark.parametrize("kind", VALUED, ids=lambda kind: str(kind.name))
def test_values_are_the_package_s(kind: gguf.GGMLQuantizationType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random bytes make every kind of scale, NaN and subnormal numbers among them; both must agree on all."""
    ours = TYPES[kind.name]
    shape = (3, 4 * ours.block_elements)
    data = np.random.default_rng(1).integers(0, 256, ours.num_bytes(shape), np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(data.reshape(3, -1), kind)
    whole = dequantize(ours, data, shape)
    assert whole.dtype == np.float32 and np.array_equal(whole, expected, equal_nan=True)
    monkeypatch.setattr(types_module, "_CHUNK_ELEMENTS", 5 * ours.block_elements)
    assert np.array_equal(dequantize(ours, data, shape), whole, equal_nan=True)


def test_values_that_the_package_has_no_rule_for() -> None:
    halves = np.array([0.5, 2.0], np.float16).view(np.uint8).reshape(2, 2)
    codes = np.array([0b11100100] * 32, np.uint8)
    for name in ("Q2_0", "Q2_0_G128", "PQ2_0"):
        kind = TYPES[name]
        blocks = np.stack([np.concatenate([half, codes[: kind.block_bytes - 2]]) for half in halves])
        values = dequantize(kind, blocks.reshape(-1), (2, kind.block_elements))
        assert values[0, :4].tolist() == [-0.5, 0.0, 0.5, 1.0] and values[1, 4:8].tolist() == [-2.0, 0.0, 2.0, 4.0]
    bits = np.concatenate([halves[0], np.array([0b10] * 16, np.uint8)])
    assert dequantize(TYPES["Q1_0"], bits, (128,))[:3].tolist() == [-0.5, 0.5, -0.5]
    numbers = np.array([1, -2, 3], np.int16).view(np.uint8)
    assert dequantize(TYPES["I16"], numbers, (3,)).tolist() == [1.0, -2.0, 3.0]


def test_every_half_and_bfloat16_number() -> None:
    bits = np.arange(2**16, dtype="<u2")
    halves = dequantize(TYPES["F16"], bits.view(np.uint8), (2**16,))
    assert np.array_equal(halves, bits.view(np.float16).astype(np.float32), equal_nan=True)
    brains = dequantize(TYPES["BF16"], bits.view(np.uint8), (2**16,))
    assert (brains.view(np.uint32) == bits.astype(np.uint32) << 16).all()


@pytest.mark.parametrize("name", ["I2_S", "TL1", "I8_S", "Q8_1", "Q8_K", "PTQ1_0"])
def test_types_without_a_rule_are_refused(name: str) -> None:
    kind = TYPES[name]
    with pytest.raises(FormatError, match=name):
        dequantize(kind, np.zeros(kind.num_bytes((1, 256)), np.uint8), (1, 256))
    with pytest.raises(FormatError, match="found 5"):
        dequantize(kind, np.zeros(5, np.uint8), (1, 256))
