"""The bytes and numbers of Hugging Face's BitNet layers, in NumPy.

Packed: a matrix of O rows and I columns, O a multiple of 4, is uint8 ``[O/4, I]``. Row ``i O/4 + j`` stands in bits
``2 i`` and ``2 i + 1`` of row j, as ternary value + 1; the bit pattern 3 never occurs.

One number goes with the matrix, ``weight_scale`` ``[1]``, read in one of two ways: the layer class ``bitlinear``
(the default) divides by it and adds the bias, ``autobitlinear`` adds the bias and multiplies with it, so that the bias
of a model is the stored one times the scale.

Online: the weights are latents, and each use of a layer ternarises them: ``r = 1 / max(mean|w|, 1e-5)`` and
``round(w r)`` clipped to -1, 0, 1 in float32, divided by r, rounded to the type the latents are stored in.

Source: transformers, integrations/bitnet.py (pack_weights, BitLinear, AutoBitLinear, WeightQuant).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import Fields
from wrinklefree.artifact.huggingface.floats import FloatType, rounded
from wrinklefree.errors import FormatError, InputError

ROWS_PER_BYTE = 4
SMALLEST_MEAN = np.float32(1e-5)
LinearClass = Literal["bitlinear", "autobitlinear"]
LINEAR_CLASSES: tuple[LinearClass, ...] = ("bitlinear", "autobitlinear")
MODES = ("offline", "online")


def pack_rows(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return the packed bytes ``[O/4, I]`` of ternary values ``[O, I]``.

    Raises: InputError when O is no multiple of 4 or a value is not -1, 0 or 1.
    """
    if codes.ndim != 2 or codes.shape[0] % ROWS_PER_BYTE:
        raise InputError(f"four rows share a byte: found shape {list(codes.shape)}, a multiple of 4 rows is needed")
    if codes.size and (int(codes.min()) < -1 or int(codes.max()) > 1):
        raise InputError(f"found codes from {codes.min()} to {codes.max()}, -1 to 1 are allowed")
    quarters = (codes + np.int8(1)).astype(np.uint8).reshape(ROWS_PER_BYTE, -1, codes.shape[1])
    return quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6


def unpack_rows(packed: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the ternary values ``[4 M, I]`` of packed bytes ``[M, I]``. Raises: FormatError for bit pattern 3."""
    if np.any(packed & (packed >> 1) & 0x55):
        raise FormatError("found the unused bit pattern 3; the file is damaged or of another layout")
    codes = np.empty((ROWS_PER_BYTE, *packed.shape), np.int8)
    for quarter in range(ROWS_PER_BYTE):
        codes[quarter] = (packed >> (2 * quarter)) & 3
    codes -= 1
    return codes.reshape(ROWS_PER_BYTE * packed.shape[0], *packed.shape[1:])


def step_of(weight_scale: NDArray[np.float32], divide: bool) -> NDArray[np.float32]:
    """Return what codes are multiplied by, float32: the stored number, or one over it where layers ``divide`` by it.

    Raises: FormatError when that is zero or no finite number.
    """
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        step = np.float32(1) / weight_scale if divide else weight_scale
    if not (np.isfinite(weight_scale).all() and np.isfinite(step).all() and np.all(step != 0)):
        raise FormatError(f"found a weight_scale of {weight_scale.ravel()[:1]}; a finite number other than 0 is needed")
    return step


def stored_scale(step: NDArray[np.float32], divide: bool) -> NDArray[np.float32]:
    """Return the ``weight_scale`` for a step float32 ``[1]``; read back, it gives the step, where a float32 can do so.

    Not every float32 is the rounded reciprocal of one: where layers divide, the nearest is a last bit away.
    """
    if not divide:
        return step
    with np.errstate(divide="ignore", over="ignore"):
        middle = np.float32(1) / step
        for candidate in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(np.inf))):
            if np.array_equal(np.float32(1) / candidate, step):
                return candidate.astype(np.float32)
    return middle


def ternarize_online(latents: NDArray[np.float32], dtype: FloatType) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return codes int8 ``[O, I]`` and the step float32 ``[1]`` of latents stored as ``dtype``.

    The mean is summed in float64; a float32 sum, whose last bits depend on the machine, may differ in those.
    """
    mean = np.float32(np.abs(latents).mean(dtype=np.float64))
    ratio = np.float32(1) / np.maximum(mean, SMALLEST_MEAN)
    codes = np.rint(latents * ratio).clip(-1, 1).astype(np.int8)
    return codes, rounded(np.array([np.float32(1) / ratio], np.float32), dtype)


@dataclass(frozen=True)
class Scheme:
    """What the ``quantization_config`` of a BitNet model says of its layers.

    ``kept`` names the modules that stayed float (its ``modules_to_not_convert``).
    """

    linear_class: LinearClass
    online: bool
    kept: tuple[str, ...]

    @property
    def divide(self) -> bool:
        return self.linear_class == "bitlinear"

    def keeps(self, module: str) -> bool:
        """Return whether a module stayed float: named, inside a named one, or ending like one."""
        return any(module.startswith(f"{name}.") or module.endswith(name) for name in self.kept)

    @classmethod
    def of(cls, raw: Mapping[str, Any], place: str) -> Scheme:
        """Return the checked object. Raises: FormatError for a setting that is unknown or changes the numbers."""
        fields = Fields({"linear_class": "bitlinear", "quantization_mode": "offline", **raw}, place)
        kept = raw.get("modules_to_not_convert") or []
        if not isinstance(kept, list) or not all(isinstance(name, str) and name for name in kept):
            raise fields.wrong("modules_to_not_convert", "a list of module names is needed")
        if raw.get("use_rms_norm"):
            raise fields.wrong("use_rms_norm", "a norm inside each layer is what no engine of ours computes")
        linear_class = fields.choice("linear_class", LINEAR_CLASSES)
        mode = fields.choice("quantization_mode", MODES)
        return cls(linear_class, linear_class == "autobitlinear" and mode == "online", tuple(kept))
