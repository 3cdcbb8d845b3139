"""The types that the embedding and an untied head may be written in, from float32 values to bytes and back.

F32, F16 and BF16 are written here, rounded to the nearest, ties to even. Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0 come from
`gguf.quants`, whose bytes equal llama.cpp's. Q6_K, which that package only reads, is fitted here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.types import dequantize, gguf_type
from wrinklefree.errors import InputError

# What --embedding says -> the type's name; the short names are those of a packed directory's precisions.
TABLE_TYPES = {
    "f16": "F16",
    "f32": "F32",
    "bf16": "BF16",
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
    "q8": "Q8_0",
    "q6": "Q6_K",
    "q4": "Q4_0",
}
_ROWS = 4096  # encoded at once; the library makes several float32 copies


def encode_table(type_name: str, values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Return the bytes of a table float32 ``[V, D]`` in a type of `TABLE_TYPES`.

    Raises: InputError for values that are no numbers or, in a type with float16 in it, too large for that.
    """
    if not np.isfinite(values).all():
        raise InputError(f"{name}: found an infinity or NaN")
    if type_name not in ("F32", "BF16") and np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise InputError(f"{name}: found values beyond float16's range (65504); give --embedding bf16 or f32")
    pieces = [_encode(type_name, values[start : start + _ROWS]) for start in range(0, len(values), _ROWS)]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint8)


def decode_table(type_name: str, data: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the values float32 ``[V, D]`` that a reader of these bytes sees."""
    return dequantize(gguf_type(type_name), data, shape)


def _encode(type_name: str, values: NDArray[np.float32]) -> NDArray[np.uint8]:
    if type_name == "F32":
        return _bytes(values)
    if type_name == "F16":
        return _bytes(values.astype(np.float16))
    if type_name == "BF16":
        return _bytes(_bfloat16(values))
    if type_name == "Q6_K":
        return _q6_k(values)
    from gguf import GGMLQuantizationType, quants

    return _bytes(quants.quantize(np.ascontiguousarray(values), GGMLQuantizationType[type_name]))


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def _bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def _q6_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return Q6_K: of 256 values, 16 times 16 with an int8 scale each, and a float16 that multiplies those.

    A value is d * scale * (number - 32) with numbers of 6 bits. A group's scale takes its largest value, sign and all,
    to number 0, the longer side of the range.

    Source: dequantize_row_q6_K in ggml/src/ggml-quants.c of llama.cpp for the layout.
    """
    groups = values.reshape(-1, 16, 16)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
    wanted = largest / np.float32(-32)
    peak = np.take_along_axis(wanted, np.abs(wanted).argmax(axis=1)[:, None], axis=1)[:, 0]
    d = (peak / np.float32(-128)).astype(np.float16)
    step = d.astype(np.float32)[:, None]
    scales = np.rint(np.divide(wanted, step, out=np.zeros_like(wanted), where=step != 0)).clip(-128, 127)
    unit = (step * scales)[..., None]
    numbers = np.rint(np.divide(groups, unit, out=np.zeros_like(groups), where=unit != 0)).clip(-32, 31) + 32
    # [block, half of 128, quarter of 32, place]
    codes = numbers.astype(np.uint8).reshape(-1, 2, 4, 32)
    low = np.concatenate([codes[:, :, q] & 15 | (codes[:, :, q + 2] & 15) << 4 for q in (0, 1)], axis=2)
    high = sum((codes[:, :, quarter] >> 4) << (2 * quarter) for quarter in range(4))
    blocks = len(groups)
    return np.concatenate(
        [
            low.reshape(blocks, 128),
            np.asarray(high, np.uint8).reshape(blocks, 64),
            scales.astype(np.int8).view(np.uint8),
            d.view(np.uint8).reshape(blocks, 2),
        ],
        axis=1,
    ).reshape(-1)
