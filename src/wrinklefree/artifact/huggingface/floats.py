"""The float types of files, F32, F16 and BF16: to float32 exactly, and back.

NumPy has no bfloat16: it comes and goes as the uint16 that is a float32's upper half.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

FloatType = Literal["F32", "F16", "BF16"]
FLOAT_TYPES: tuple[FloatType, ...] = ("F32", "F16", "BF16")


def widen(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return stored values (uint16 for BF16) as float32 of the same shape; every value is kept, subnormals too."""
    if dtype == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    values: NDArray[np.float32] = stored.astype(np.float32)
    return values


def narrow(values: NDArray[np.float32], dtype: FloatType) -> NDArray[Any]:
    """Return float32 values rounded to ``dtype``, half to even; BF16 as uint16. Values are taken to be finite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    with np.errstate(over="ignore"):
        return values.astype(np.float16 if dtype == "F16" else np.float32)


def rounded(values: NDArray[np.float32], dtype: FloatType) -> NDArray[np.float32]:
    """Return what a reader finds when float32 values are stored as ``dtype``."""
    return widen(narrow(values, dtype), dtype)


def holds(dtype: FloatType, values: NDArray[np.float32]) -> bool:
    """Return whether ``dtype`` stores each of these finite values exactly, the sign of a zero included."""
    same = rounded(values, dtype).view(np.uint32) == np.ascontiguousarray(values, np.float32).view(np.uint32)
    return bool(same.all())
