"""`quant.haar.haar_forward` and `haar_inverse` as Triton kernels: one pass over the weights each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wrinklefree.errors import MissingDependencyError

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for CPUs come without it
    triton = None

_BLOCK = 256  # pairs of a program


def _jit(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _forward_kernel(weight_ptr, out_ptr, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, pairs = tl.program_id(0), columns // 2
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    start = weight_ptr + row * columns
    even = tl.load(start + 2 * pair, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(start + 2 * pair + 1, mask=inside, other=0.0).to(tl.float32)
    low_count = columns - pairs
    to = out_ptr + row * columns
    tl.store(to + pair, (even + odd) * 0.7071067811865476, mask=inside)
    tl.store(to + low_count + pair, (even - odd) * 0.7071067811865476, mask=inside)
    # The column without a neighbour, of the program that would hold its pair.
    alone = (pair >= pairs) & (pair < low_count)
    last = tl.load(start + 2 * pair, mask=alone, other=0.0).to(tl.float32)
    tl.store(to + pair, last, mask=alone)


@_jit
def _inverse_kernel(coefficients_ptr, out_ptr, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row, pairs = tl.program_id(0), columns // 2
    pair = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pair < pairs
    low_count = columns - pairs
    start = coefficients_ptr + row * columns
    low = tl.load(start + pair, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(start + low_count + pair, mask=inside, other=0.0).to(tl.float32)
    to = out_ptr + row * columns
    tl.store(to + 2 * pair, (low + high) * 0.7071067811865476, mask=inside)
    tl.store(to + 2 * pair + 1, (low - high) * 0.7071067811865476, mask=inside)
    alone = (pair >= pairs) & (pair < low_count)
    last = tl.load(start + pair, mask=alone, other=0.0).to(tl.float32)
    tl.store(to + 2 * pair, last, mask=alone)


def haar_forward(weight: Tensor) -> Tensor:
    """Return what `quant.haar.haar_forward` returns, for ``weight [O, I]`` on a GPU."""
    return _launch(_forward_kernel, weight)


def haar_inverse(coefficients: Tensor) -> Tensor:
    """Return what `quant.haar.haar_inverse` returns, for ``coefficients [O, I]`` on a GPU."""
    return _launch(_inverse_kernel, coefficients)


def _launch(kernel, tensor: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    if triton is None:
        raise MissingDependencyError("quant.haar_triton: Triton is missing; pip install triton")
    tensor = tensor.contiguous()
    rows, columns = tensor.shape
    out = torch.empty_like(tensor)
    kernel[(rows, triton.cdiv(-(-columns // 2), _BLOCK))](tensor, out, columns, BLOCK=_BLOCK)
    return out
