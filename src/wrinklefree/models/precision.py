"""Which floating-point type this CPU multiplies fastest: bfloat16 where it is native, float32 elsewhere."""

from __future__ import annotations

import time
from functools import cache

import torch

# Bfloat16 has to win clearly: it costs accuracy.
_WORTH = 1.3


@cache
def fast_matmul_dtype() -> tuple[torch.dtype, str]:
    """Return the dtype for matrix products where rounding to 8 bits is harmless, and why it was chosen.

    Measured once, in a few milliseconds (half a second where bfloat16 is emulated).
    """
    if torch.cuda.is_available():
        return torch.bfloat16, "bfloat16: a GPU is present"
    seconds = {dtype: _best_of(dtype) for dtype in (torch.float32, torch.bfloat16)}
    gain = seconds[torch.float32] / seconds[torch.bfloat16]
    if gain >= _WORTH:
        return torch.bfloat16, f"bfloat16: {gain:.1f} times as fast as float32 on this CPU"
    return torch.float32, f"float32: bfloat16 runs at {gain:.2f} of its speed on this CPU"


def _best_of(dtype: torch.dtype, repeats: int = 5) -> float:
    """The best time of a product of a linear layer's size, in seconds."""
    x, weight = torch.ones(128, 576, dtype=dtype), torch.ones(576, 576, dtype=dtype)
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - started)
    return best
