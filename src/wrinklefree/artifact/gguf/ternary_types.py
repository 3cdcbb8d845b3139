"""Ternary codes in the bytes of GGUF's tensor types, both ways, exactly.

A weight is a code (-1, 0 or 1) times the scale of its block. Nothing here rounds: `encode` refuses a scale that the
type cannot hold, `decode` refuses bytes that are not ternary. Elements of a block stand in the order of the row; the
runs below say which of them share a byte.

==========  =======  ==========================================================================================
type        block    bytes of a block
==========  =======  ==========================================================================================
TQ1_0       256      48 bytes of five trits (a run of 32 bytes, then one of 16), 4 bytes of four, float16 scale
PTQ1_0      128      24 bytes of five trits (runs of 16 and 8), 2 bytes of four, float16 scale
TQ2_0       256      64 bytes of four 2-bit codes (two runs of 32), float16 scale
Q2_0        64       float16 scale, 16 bytes of four 2-bit codes of neighbours (Q2_0_G128, PQ2_0: 128, 32 bytes)
Q4_0        32       float16 scale, 16 bytes of two 4-bit values + 8
Q8_0        32       float16 scale, 32 bytes of int8
I2_S        tensor   2-bit codes in one of three orders (`I2sLayout`); the float32 scale and 28 bytes follow the tensor
F32 F16     row      the products; a block of 64 columns, or the row, must hold one absolute value besides 0
==========  =======  ==========================================================================================

Source: ggml/src/ggml-quants.c of llama.cpp (quantize_row_*_ref, dequantize_row_*); src/ggml-bitnet-mad.cpp of
microsoft/BitNet (quantize_i2_s); llama.cpp's issue 29058 for PQ2_0 and PTQ1_0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.types import GgufType, dequantize
from wrinklefree.artifact.ternary_values import exact_ternary
from wrinklefree.errors import FormatError, InputError

Bytes = NDArray[np.uint8]
Codes = NDArray[np.int8]
Scales = NDArray[np.float32]

# Which machine's order I2_S has; nothing in a file says so. x86: 32 bytes hold 128 neighbours. arm: 16 bytes hold 64.
# rows: a byte holds the same column of four rows (x86 built without ACT_PARALLEL).
I2sLayout = Literal["x86", "arm", "rows"]
I2S_RUN = {"x86": 32, "arm": 16}

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_WEIGHTS = np.array([81, 27, 9, 3, 1], np.uint8)
_CHUNK_ELEMENTS = 1 << 20
# The runs of bytes that hold five codes each, and the number of bytes with four.
_TRITS = {"TQ1_0": ((32, 16), 4), "PTQ1_0": ((16, 8), 2)}
_SCALE_FIRST = frozenset({"Q2_0", "Q2_0_G128", "PQ2_0", "Q4_0", "Q8_0"})
FLOATS = ("F32", "F16", "BF16")
TERNARY_TYPES = (*_TRITS, "TQ2_0", "Q2_0", "Q2_0_G128", "PQ2_0", "Q4_0", "Q8_0", "I2_S", *FLOATS)


def encode(kind: GgufType, codes: Codes, scales: Scales, i2s_layout: I2sLayout = "x86") -> Bytes:
    """Return the bytes of a tensor of ternary ``codes`` int8 ``[O, I]``.

    ``scales``: float32 ``[1]``, ``[O]`` or ``[O, G]`` for groups of ``I / G`` columns.

    Raises: InputError when codes are not ternary int8, when rows are no whole number of blocks, or when the type
    cannot hold these scales: one that changes within a block, or that is no exact float16 (`rounded`).
    """
    _check_codes(kind, codes)
    if scales.dtype != np.float32 or not np.isfinite(scales).all():
        raise InputError(f"{kind.name}: scales {scales.dtype} are not float32, or not all finite numbers")
    if kind.name not in TERNARY_TYPES:
        raise InputError(f"{kind.name} holds no ternary codes (allowed: {', '.join(TERNARY_TYPES)})")
    if kind.name == "I2_S":
        return _encode_i2s(codes, _one_scale(scales), i2s_layout)
    rows, columns = codes.shape
    if kind.name in FLOATS:
        return _encode_floats(kind, codes, scales)
    if columns % kind.block_elements:
        raise InputError(f"rows of {columns} codes are no whole number of {kind.name}'s blocks ({kind.block_elements})")
    halves = _halves(kind, _per_block(kind, scales, rows, columns)).reshape(-1)
    blocks = np.empty((halves.size, kind.block_bytes), np.uint8)
    begin = 2 if kind.name in _SCALE_FIRST else 0
    blocks[:, 0 if begin else kind.block_bytes - 2 :][:, :2] = halves.view(np.uint8).reshape(-1, 2)
    body = blocks[:, begin : begin + kind.block_bytes - 2]
    values = codes.reshape(halves.size, kind.block_elements)
    for part in _pieces(halves.size, kind.block_elements):
        _ENCODERS[kind.name](kind, values[part], body[part])
    return blocks.reshape(-1)


def decode(kind: GgufType, data: Bytes, shape: tuple[int, ...], i2s_layout: I2sLayout = "x86") -> tuple[Codes, Scales]:
    """Return the codes int8 ``[O, I]`` and the scales float32 of a tensor's bytes.

    Scales: ``[1]`` for I2_S, else ``[O, G]``, one per block. A block whose scale is 0 comes with codes 0. Q4_0 and Q8_0
    are ternary when a block holds one absolute value besides 0; it then belongs to the scale.

    Raises: FormatError when the bytes are too few, hold other values, or a scale that is no finite number.
    """
    if kind.name not in TERNARY_TYPES:
        raise FormatError(f"{kind.name} holds no ternary codes")
    if len(shape) != 2 or data.size != kind.num_bytes(shape):
        raise FormatError(f"{kind.name} of shape {list(shape)} has {data.size} bytes, or not two dimensions")
    rows, columns = shape
    if kind.name == "I2_S":
        return _decode_i2s(data, rows, columns, i2s_layout)
    if kind.name in FLOATS:
        found = exact_ternary(dequantize(kind, data, shape))
        if found is None:
            raise FormatError(f"the values in {kind.name} are not ternary")
        return found
    blocks = data.reshape(-1, kind.block_bytes)
    begin = 2 if kind.name in _SCALE_FIRST else 0
    halves = np.ascontiguousarray(blocks[:, 0 if begin else kind.block_bytes - 2 :][:, :2]).view("<f2")
    scales = halves.reshape(-1).astype(np.float32)
    if not np.isfinite(scales).all():
        raise FormatError(f"{kind.name} holds a scale that is no finite number")
    body = blocks[:, begin : begin + kind.block_bytes - 2]
    codes = np.empty((scales.size, kind.block_elements), np.int8)
    for part in _pieces(scales.size, kind.block_elements):
        factors = _DECODERS[kind.name](kind, body[part], codes[part])
        if factors is not None:
            scales[part] *= factors
    _clear(codes, scales)
    return codes.reshape(rows, columns), scales.reshape(rows, columns // kind.block_elements)


# Types whose blocks have a scale that no code changes.
PLAIN_SCALES = frozenset({*_TRITS, "TQ2_0", "Q2_0", "Q2_0_G128", "PQ2_0", "I2_S"})


def has_plain_scales(kind: GgufType, data: Bytes) -> bool:
    """Return whether the scales are those of the blocks: by the type, or since a Q4_0 holds only -1, 0 and 1."""
    if kind.name != "Q4_0":
        return kind.name in PLAIN_SCALES
    if data.size % kind.block_bytes:
        return False
    used = np.bincount(data.reshape(-1, kind.block_bytes)[:, 2:].reshape(-1), minlength=256)
    return not used[~_ONES].any()


def scales_of(kind: GgufType, data: Bytes, shape: tuple[int, int]) -> Scales:
    """Return the scales that `decode` gives where `has_plain_scales`, without a look at the codes.

    Raises: FormatError when the bytes are too few or a scale is no finite number.
    """
    if data.size != kind.num_bytes(shape):
        raise FormatError(f"{kind.name} of shape {list(shape)} has {data.size} bytes")
    if kind.name == "I2_S":
        scales = data[-32:-28].copy().view("<f4").astype(np.float32)
    else:
        blocks = data.reshape(shape[0], -1, kind.block_bytes)
        begin = 0 if kind.name in _SCALE_FIRST else kind.block_bytes - 2
        scales = np.ascontiguousarray(blocks[:, :, begin : begin + 2]).view("<f2")[:, :, 0].astype(np.float32)
    if not np.isfinite(scales).all():
        raise FormatError(f"{kind.name} holds a scale that is no finite number")
    return scales


def rounded(scales: Scales) -> Scales:
    """Return the nearest float16 of each scale, as float32: a relative change of at most 2^-11 within its normal range.

    Raises: InputError when a scale is beyond float16, or so small that more would be lost.
    """
    with np.errstate(over="ignore"):
        halves = scales.astype(np.float16).astype(np.float32)
    if not np.isfinite(halves).all():
        raise InputError(f"a scale of {np.abs(scales).max()} is beyond float16 (65504)")
    if (np.abs(halves - scales) > np.abs(scales) * np.float32(2**-11)).any():
        raise InputError(f"a scale of {np.abs(scales[scales != 0]).min()} is too small for float16")
    return halves


def _check_codes(kind: GgufType, codes: Codes) -> None:
    if codes.dtype != np.int8 or codes.ndim != 2:
        raise InputError(
            f"{kind.name}: found {codes.dtype} {list(codes.shape)}; ternary codes int8 [rows, columns] are needed, "
            "never latent weights"
        )
    if codes.size and (int(codes.min()) < -1 or int(codes.max()) > 1):
        raise InputError(f"{kind.name}: found codes from {codes.min()} to {codes.max()}, -1 to 1 are allowed")


def _per_block(kind: GgufType, scales: Scales, rows: int, columns: int) -> Scales:
    """Return the scales float32 ``[O, blocks]``."""
    blocks = columns // kind.block_elements
    if scales.ndim == 1 and scales.size in (1, rows):
        return np.broadcast_to(scales[:, None], (rows, blocks))
    groups = scales.shape[-1]
    if scales.ndim != 2 or scales.shape[0] != rows or not groups or columns % groups:
        raise InputError(f"found scales {list(scales.shape)} for codes [{rows}, {columns}]")
    width = columns // groups
    if width % kind.block_elements == 0:
        return np.repeat(scales, width // kind.block_elements, axis=1)
    wide = scales.reshape(rows, blocks, -1) if kind.block_elements % width == 0 else None
    if wide is None or (wide != wide[:, :, :1]).any():
        raise InputError(
            f"{kind.name} has one scale per {kind.block_elements} columns; these scales change every {width}"
        )
    return np.ascontiguousarray(wide[:, :, 0])


def _halves(kind: GgufType, scales: Scales) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        halves = np.ascontiguousarray(scales, "<f2")
    if not (halves == scales).all():
        wrong = scales[halves != scales].reshape(-1)[0]
        raise InputError(f"{kind.name} holds float16 scales; {wrong!r} is none (round the scales first)")
    return halves


def _one_scale(scales: Scales) -> np.float32:
    if not scales.size or (scales != scales.flat[0]).any():
        raise InputError("I2_S holds one scale for a whole tensor; these differ")
    return np.float32(scales.flat[0])


def _pieces(count: int, elements: int) -> Iterator[slice]:
    """Slices of blocks that keep what is made on the way small."""
    step = max(1, _CHUNK_ELEMENTS // elements)
    return (slice(begin, begin + step) for begin in range(0, count, step))


def _clear(codes: Codes, scales: Scales) -> None:
    """Values times 0 are 0, whatever their codes; so that another scale can take over the block."""
    nothing = scales == 0
    if nothing.any():
        codes[nothing] = 0


def _runs(name: str) -> Iterator[tuple[slice, slice, int, int]]:
    """Per run of TQ1_0's bytes: its bytes, its elements, codes in a byte, bytes in the run."""
    runs, last = _TRITS[name]
    byte = element = 0
    for width, held in (*((width, 5) for width in runs), (last, 4)):
        yield slice(byte, byte + width), slice(element, element + held * width), held, width
        byte, element = byte + width, element + held * width


def _encode_trits(kind: GgufType, codes: Codes, body: Bytes) -> None:
    for place, elements, held, width in _runs(kind.name):
        digits = (codes[:, elements] + 1).view(np.uint8).reshape(-1, held, width)
        number = digits[:, 0] * _WEIGHTS[0]
        for index in range(1, held):
            number += digits[:, index] * _WEIGHTS[index]
        body[:, place] = _CARRIER[number]


def _decode_trits(kind: GgufType, body: Bytes, codes: Codes) -> None:
    for place, elements, held, width in _runs(kind.name):
        found = np.ascontiguousarray(body[:, place])
        target = codes[:, elements].reshape(-1, held, width)
        for index in range(held):
            target[:, index] = _DIGIT[found * _POWERS[index]]


def _encode_planes(kind: GgufType, codes: Codes, body: Bytes) -> None:
    """TQ2_0: byte m of a run of 32 holds elements m, m + 32, m + 64, m + 96, the first in the lowest bits."""
    digits = (codes + 1).view(np.uint8).reshape(-1, 2, 4, 32)
    target = body.reshape(-1, 2, 32)
    target[...] = digits[:, :, 0]
    for index in range(1, 4):
        target |= digits[:, :, index] << np.uint8(2 * index)


def _decode_planes(kind: GgufType, body: Bytes, codes: Codes) -> None:
    found, target = np.ascontiguousarray(body).reshape(-1, 2, 32), codes.reshape(-1, 2, 4, 32)
    _refuse_threes(kind, found)
    for index in range(4):
        target[:, :, index] = _CODE[index][found]


def _encode_pairs(kind: GgufType, codes: Codes, body: Bytes) -> None:
    """Q2_0: byte m holds elements 4 m to 4 m + 3, the first in the lowest bits."""
    digits = (codes + 1).view(np.uint8).reshape(len(codes), -1, 4)
    body[...] = digits[:, :, 0] | digits[:, :, 1] << 2 | digits[:, :, 2] << 4 | digits[:, :, 3] << 6


def _decode_pairs(kind: GgufType, body: Bytes, codes: Codes) -> None:
    _refuse_threes(kind, body)
    target = codes.reshape(len(codes), -1, 4)
    for index in range(4):
        target[:, :, index] = _CODE[index][body]


def _encode_q4(kind: GgufType, codes: Codes, body: Bytes) -> None:
    values = (codes + 8).view(np.uint8)
    body[...] = values[:, :16] | values[:, 16:] << 4


def _decode_q4(kind: GgufType, body: Bytes, codes: Codes) -> Scales | None:
    codes[:, :16] = (body & 15).view(np.int8) - 8
    codes[:, 16:] = (body >> 4).view(np.int8) - 8
    return _signs(kind, codes)


def _encode_q8(kind: GgufType, codes: Codes, body: Bytes) -> None:
    body[...] = codes.view(np.uint8)


def _decode_q8(kind: GgufType, body: Bytes, codes: Codes) -> Scales | None:
    codes[...] = body.view(np.int8)
    return _signs(kind, codes)


def _signs(kind: GgufType, values: Codes) -> Scales | None:
    """Replace values by their signs and return what to multiply the scales with, None for 1 everywhere."""
    low, high = values.min(axis=1), values.max(axis=1)
    if values.size == 0 or (int(low.min()) >= -1 and int(high.max()) <= 1):
        return None
    size = np.maximum(high.astype(np.int16), -low.astype(np.int16))
    others = (values != 0) & (np.abs(values.astype(np.int16)) != size[:, None])
    if others.any():
        raise FormatError(f"the values in {kind.name} are not ternary")
    np.sign(values, out=values)
    return np.maximum(size, 1).astype(np.float32)


def _refuse_threes(kind: GgufType, body: Bytes) -> None:
    if (body & (body >> 1) & 0x55).any():
        raise FormatError(f"{kind.name} holds the code 3, which is no ternary value")


def _encode_i2s(codes: Codes, scale: np.float32, layout: I2sLayout) -> Bytes:
    digits = _i2s_quarters((codes + 1).view(np.uint8), layout, InputError)
    body = digits[..., 0, :] << 6 | digits[..., 1, :] << 4 | digits[..., 2, :] << 2 | digits[..., 3, :]
    tail = np.zeros(32, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([body.reshape(-1), tail])


def _decode_i2s(data: Bytes, rows: int, columns: int, layout: I2sLayout) -> tuple[Codes, Scales]:
    kind = "I2_S"
    scale = data[-32:-28].copy().view("<f4").astype(np.float32)
    if not np.isfinite(scale).all():
        raise FormatError(f"{kind} holds a scale that is no finite number")
    body = data[:-32]
    if (body & (body >> 1) & 0x55).any():
        raise FormatError(f"{kind} holds the code 3, which is no ternary value")
    codes = np.empty((rows, columns), np.int8)
    target = _i2s_quarters(codes, layout, FormatError)
    source = body.reshape(target.shape[:-2] + target.shape[-1:])
    for index in range(4):
        target[..., index, :] = _CODE[3 - index][source]
    if scale[0] == 0:
        codes[...] = 0
    return codes, scale


def _i2s_quarters(codes: NDArray[Any], layout: I2sLayout, error: type[InputError]) -> NDArray[Any]:
    """Return a view ``[..., 4, run]``: the four codes that share a byte, the first in the highest bits."""
    rows, columns = codes.shape
    if layout == "rows":
        if rows % 4:
            raise error(f"I2_S in the order of rows needs a multiple of 4 of them, found {rows}")
        return codes.reshape(rows // 4, 4, columns)
    run = I2S_RUN[layout]
    if columns % (4 * run):
        raise error(f"I2_S in the order of {layout} needs rows of a multiple of {4 * run} codes, found {columns}")
    return codes.reshape(rows, columns // (4 * run), 4, run)


def _encode_floats(kind: GgufType, codes: Codes, scales: Scales) -> Bytes:
    rows, columns = codes.shape
    if scales.ndim == 1 and scales.size in (1, rows):
        values = codes * scales[:, None]
    elif scales.ndim == 2 and scales.shape[0] == rows and columns % max(1, scales.shape[1]) == 0:
        values = (codes.reshape(rows, scales.shape[1], -1) * scales[:, :, None]).reshape(rows, columns)
    else:
        raise InputError(f"found scales {list(scales.shape)} for codes [{rows}, {columns}]")
    values += np.float32(0)  # -0.0 becomes 0.0
    if kind.name == "F32":
        return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)
    if kind.name == "F16":
        _halves(kind, scales)
        return np.ascontiguousarray(values, "<f2").reshape(-1).view(np.uint8)
    bits = values.astype("<f4").view(np.uint32)
    if (bits & 0xFFFF).any():
        raise InputError("BF16 cannot hold these scales (round them first)")
    return (bits >> 16).astype("<u2").reshape(-1).view(np.uint8)


# Bits of a byte, lowest first -> code.
_CODE = tuple(((np.arange(256) >> shift & 3) - 1).astype(np.int8) for shift in (0, 2, 4, 6))
# Bytes whose two nibbles are -1, 0 or 1, plus 8.
_ONES = np.isin(np.arange(256) & 15, (7, 8, 9)) & np.isin(np.arange(256) >> 4, (7, 8, 9))
# The number of five trits -> its byte (a ceiling division); a byte times a power of three -> its highest trit.
_CARRIER = np.array([min(255, math.ceil(number * 256 / 243)) for number in range(256)], np.uint8)
_DIGIT = ((np.arange(256) * 3 >> 8) - 1).astype(np.int8)

_ENCODERS: dict[str, Callable[[GgufType, Codes, Bytes], None]] = {
    "TQ1_0": _encode_trits,
    "PTQ1_0": _encode_trits,
    "TQ2_0": _encode_planes,
    "Q2_0": _encode_pairs,
    "Q2_0_G128": _encode_pairs,
    "PQ2_0": _encode_pairs,
    "Q4_0": _encode_q4,
    "Q8_0": _encode_q8,
}
_DECODERS: dict[str, Callable[[GgufType, Bytes, Codes], Scales | None]] = {
    "TQ1_0": _decode_trits,
    "PTQ1_0": _decode_trits,
    "TQ2_0": _decode_planes,
    "Q2_0": _decode_pairs,
    "Q2_0_G128": _decode_pairs,
    "PQ2_0": _decode_pairs,
    "Q4_0": _decode_q4,
    "Q8_0": _decode_q8,
}
