"""The types a tensor in a GGUF file may have: their numbers, and how many bytes a block of elements takes.

Numbers up to 42 are ggml's, except 36 to 38, which ggml has left free or retired and bitnet.cpp's fork uses. 39 is
MXFP4, as in ggml; the TL2 of bitnet.cpp, which has the same number, depends on the machine and is not read.

Source: ggml/include/ggml.h and ggml/src/ggml-common.h of llama.cpp; for I2_S, I8_S and TL1 ggml.c (ggml_nbytes) of the
llama.cpp in microsoft/BitNet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
}
BY_NUMBER: dict[int, GgufType] = {kind.number: kind for kind in TYPES.values()}


def gguf_type(name: str) -> GgufType:
    """Return the type of a name such as ``TQ1_0``. Raises: InputError for an unknown one."""
    if name not in TYPES:
        raise unknown_name("GGUF type", name, TYPES)
    return TYPES[name]
