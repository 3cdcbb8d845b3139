"""The types a tensor in a GGUF file may have: their numbers, and how many bytes a block of elements takes.

Numbers up to 42 are ggml's, except 36 to 38, which ggml has left free or retired and bitnet.cpp's fork uses. 39 is
MXFP4, as in ggml; the TL2 of bitnet.cpp, which has the same number, depends on the machine and is not read.

Source: ggml/include/ggml.h and ggml/src/ggml-common.h of llama.cpp; for I2_S, I8_S and TL1 ggml.c (ggml_nbytes) of the
llama.cpp in microsoft/BitNet; for the types of PrismML's fork llama.cpp's issue 29058 and pull request 24448.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import FormatError, unknown_name


@dataclass(frozen=True)
class GgufType:
    """One type: ``block_elements`` neighbours in a row take ``block_bytes``; ``tail_bytes`` follow the whole tensor."""

    name: str
    number: int
    block_elements: int
    block_bytes: int
    tail_bytes: int = 0

    def num_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of ``shape`` (slowest dimension first).

        Raises: FormatError when a row is no whole number of blocks.
        """
        row = shape[-1] if shape else 1
        if row % self.block_elements:
            raise FormatError(
                f"rows of {row} elements cannot be {self.name}: its blocks hold {self.block_elements} elements"
            )
        return math.prod(shape) // self.block_elements * self.block_bytes + self.tail_bytes


# Name, number, elements and bytes of a block.
_BLOCKS = (
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)

TYPES: dict[str, GgufType] = {name: GgufType(name, *sizes) for name, *sizes in _BLOCKS} | {
    # bitnet.cpp: four codes in a byte, and 32 bytes behind the tensor of which the first four are its scale.
    "I2_S": GgufType("I2_S", 36, 4, 1, 32),
    "I8_S": GgufType("I8_S", 37, 1, 1),
    "TL1": GgufType("TL1", 38, 4, 1, 32),
    # PrismML's fork: blocks of 128. Its first files call theirs 42, which ggml then gave to blocks of 64.
    "Q2_0_G128": GgufType("Q2_0_G128", 42, 128, 34),
    "PQ2_0": GgufType("PQ2_0", 142, 128, 34),
    "PTQ1_0": GgufType("PTQ1_0", 143, 128, 28),
}
BY_NUMBER: dict[int, GgufType] = {kind.number: kind for kind in TYPES.values() if kind.name != "Q2_0_G128"}
# The number that two programs gave to different types: a file's type is the first whose sizes agree with its offsets.
AMBIGUOUS = (TYPES["Q2_0"], TYPES["Q2_0_G128"])
# Types whose elements NumPy can hold one by one (BF16 as its bits).
PLAIN_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F64": np.dtype("<f8"),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}


def gguf_type(name: str) -> GgufType:
    """Return the type of a name such as ``TQ1_0``. Raises: InputError for an unknown one."""
    if name not in TYPES:
        raise unknown_name("GGUF type", name, TYPES)
    return TYPES[name]


def dequantize(kind: GgufType, data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a tensor's values float32 in ``shape`` from its bytes, a piece at a time.

    Raises: FormatError when there are too few bytes, or for a type without a rule (I2_S and its like depend on the
    machine, Q8_1 and Q8_K are never stored).
    """
    if data.size != kind.num_bytes(shape):
        raise FormatError(f"{kind.name} {list(shape)} needs {kind.num_bytes(shape)} bytes, found {data.size}")
    rule = _RULES.get(kind.name) or _package_rule(kind)
    values = np.empty((data.size // kind.block_bytes, kind.block_elements), np.float32)
    blocks = data.reshape(-1, kind.block_bytes)
    step = max(1, _CHUNK_ELEMENTS // kind.block_elements)
    with np.errstate(all="ignore"):  # damaged scales (NaN, infinity) give damaged values, not warnings
        for begin in range(0, len(blocks), step):
            values[begin : begin + step] = rule(np.ascontiguousarray(blocks[begin : begin + step]))
    return values.reshape(shape)


def _package_rule(kind: GgufType) -> Rule:
    """The rule of the gguf package, which takes and gives whole blocks."""
    from gguf import GGMLQuantizationType  # takes a third of a second, so only whoever needs it pays
    from gguf.quants import dequantize as package_dequantize

    def rule(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        # As one row: of many it would make groups of sixteen, each with the cost of all its calls.
        found: NDArray[np.float32] = package_dequantize(blocks.reshape(1, -1), GGMLQuantizationType(kind.number))
        return found.reshape(len(blocks), -1)

    if kind.tail_bytes or kind.number in _NO_RULE or kind.number not in {int(known) for known in GGMLQuantizationType}:
        raise FormatError(f"tensors of the type {kind.name} cannot be turned into numbers here")
    return rule


def _half(blocks: NDArray[np.uint8], begin: int = 0) -> NDArray[np.float32]:
    """The float16 at ``begin`` of each block, float32 ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _nibbles(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate([blocks & 15, blocks >> 4], axis=1)


def _q4_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = _nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8)
    return _half(blocks) * values


def _q4_1(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks) * _nibbles(blocks[:, 4:]).astype(np.float32) + _half(blocks, 2)


def _q8_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return _half(blocks) * blocks[:, 2:].view(np.int8)


def _q2_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    values = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return _half(blocks) * (values.reshape(len(blocks), -1).view(np.int8) - np.int8(1))


def _q1_0(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    bits = np.unpackbits(np.ascontiguousarray(blocks[:, 2:]), axis=1, bitorder="little")
    return _half(blocks) * (2 * bits.view(np.int8) - np.int8(1))


def _bf16(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _plain(dtype: np.dtype[Any]) -> Rule:
    def rule(blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        return blocks.view(dtype).astype(np.float32)

    return rule


Rule = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
_CHUNK_ELEMENTS = 1 << 20
_NO_RULE = frozenset({TYPES["Q8_1"].number, TYPES["Q8_K"].number})
_RULES: dict[str, Rule] = {
    **{name: _plain(dtype) for name, dtype in PLAIN_DTYPES.items() if name != "BF16"},
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q1_0": _q1_0,
    "Q2_0": _q2_0,
    "Q2_0_G128": _q2_0,
    "PQ2_0": _q2_0,
}
