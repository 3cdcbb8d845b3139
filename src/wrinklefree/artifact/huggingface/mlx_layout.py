"""The bytes of MLX's affine quantisation, to float32: how ternary models for Apple's machines are published.

A matrix ``[O, I]`` of b bits (2, 4 or 8) is uint32 ``[O, I b / 32]``; the first element of a word is in its lowest
bits. For each group of columns there are a scale and a bias, ``[O, I / group]`` in two float tensors beside it
(``.scales``, ``.biases``); a value is ``scale * number + bias``. Ternary groups have bias -s and the numbers 0, 1, 2.

Source: MLX, mlx.core.quantize and mlx.core.dequantize (documentation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import Fields
from wrinklefree.errors import FormatError

BITS = (2, 4, 8)
MAX_GROUP = 1 << 16
_KNOWN = {"group_size", "bits", "mode", "quant_method"}


@dataclass(frozen=True)
class MlxFormat:
    """The ``quantization`` object of a config.json that MLX wrote."""

    group_size: int
    bits: int

    @classmethod
    def of(cls, raw: Mapping[str, Any], place: str) -> MlxFormat:
        """Return the checked object. Raises: FormatError naming the key, also for settings of single layers."""
        fields = Fields({"mode": "affine", **raw}, place)
        fields.choice("mode", ("affine",))
        for key in raw.keys() - _KNOWN:
            raise fields.wrong(key, "one setting for all layers is what can be read")
        bits = fields.size("bits", max(BITS))
        if bits not in BITS:
            raise fields.wrong("bits", "2, 4 or 8 are needed")
        return cls(fields.size("group_size", MAX_GROUP), bits)

    def shapes(self, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the shapes of the words and of the scales. Raises: FormatError when the columns do not divide."""
        if columns % self.group_size or columns * self.bits % 32:
            raise FormatError(
                f"{columns} columns are no whole number of groups of {self.group_size} or of 32-bit words"
            )
        return (rows, columns * self.bits // 32), (rows, columns // self.group_size)

    def values(
        self, words: NDArray[np.uint32], scales: NDArray[np.float32], biases: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the values float32 ``[O, I]`` of words, scales and biases of the shapes that `shapes` gives."""
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        numbers = (words[:, :, None] >> shifts & np.uint32((1 << self.bits) - 1)).astype(np.float32)
        grouped = numbers.reshape(len(words), -1, self.group_size)
        grouped *= scales[:, :, None]
        grouped += biases[:, :, None]
        return grouped.reshape(len(words), -1)
