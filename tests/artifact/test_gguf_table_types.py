"""Tables in GGUF's types: the bytes are the gguf package's; of Q6_K, which it only reads, the values are."""

from __future__ import annotations

import numpy as np
import pytest

from wrinklefree.artifact.gguf.table_types import TABLE_TYPES, decode_table, encode_table
from wrinklefree.errors import InputError

VALUES = np.random.default_rng(5).standard_normal((9, 512)).astype(np.float32) * np.float32(0.3)


@pytest.mark.parametrize("name", sorted(set(TABLE_TYPES.values()) - {"Q6_K"}))
def test_bytes_are_those_of_the_gguf_package(name: str) -> None:
    from gguf import GGMLQuantizationType, quants

    kind = GGMLQuantizationType[name]
    ours = encode_table(name, VALUES, "token_embd")
    assert ours.tobytes() == np.ascontiguousarray(quants.quantize(VALUES, kind)).tobytes()
    np.testing.assert_array_equal(decode_table(name, ours, VALUES.shape), quants.dequantize(
        ours.view(np.float32 if name == "F32" else np.float16 if name == "F16" else np.uint8).reshape(9, -1), kind
    ))  # fmt: skip


def test_q6_k_is_read_by_the_gguf_package_and_rounds_to_its_step() -> None:
    """A group of 16 has 32 steps to its largest value and a scale of 8 bits: half a step of error, and the scale's."""
    from gguf import GGMLQuantizationType, quants

    ours = encode_table("Q6_K", VALUES, "token_embd")
    assert ours.size == VALUES.size // 256 * 210
    read = quants.dequantize(ours.reshape(9, -1), GGMLQuantizationType.Q6_K)
    np.testing.assert_array_equal(decode_table("Q6_K", ours, VALUES.shape), read)
    groups, errors = VALUES.reshape(-1, 16), (read - VALUES).reshape(-1, 16)
    peaks = np.abs(groups).max(axis=1, keepdims=True)
    assert (np.abs(errors) <= peaks * (1.5 / 32)).all()
    assert np.sqrt(np.mean(errors**2)) < 0.025 * np.sqrt(np.mean(groups**2))
    zeros = np.zeros((1, 256), np.float32)
    np.testing.assert_array_equal(decode_table("Q6_K", encode_table("Q6_K", zeros, "zeros"), zeros.shape), zeros)


def test_what_a_type_cannot_hold_is_refused() -> None:
    large = np.full((1, 32), 1e5, np.float32)
    for name in ("F16", "Q8_0"):
        with pytest.raises(InputError, match="beyond float16's range"):
            encode_table(name, large, "token_embd")
    np.testing.assert_array_equal(decode_table("F32", encode_table("F32", large, "t"), (1, 32)), large)
    with pytest.raises(InputError, match="an infinity or NaN"):
        encode_table("F32", large * np.float32(np.inf), "token_embd")
