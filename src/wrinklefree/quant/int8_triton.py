"""`quant.int8.scaled_product` as one Triton kernel: each group's integers are summed and scaled where they are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wrinklefree.errors import MissingDependencyError
from wrinklefree.quant.ternary import TernarySpec

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for CPUs come without it
    triton = None

_BLOCK = 64  # rows, outputs and columns of a program's tile; a group is a multiple of its columns


def _jit(function: Callable[..., None]) -> Any:
    return function if triton is None else triton.jit(function)


@_jit
def _kernel(  # type: ignore[no-untyped-def]
    x_ptr, x_scale_ptr, codes_ptr, scale_ptr, out_ptr, rows, outputs, columns, group_size, groups,
    scale_row_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    output = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inner = tl.arange(0, BLOCK)
    row_in, output_in = row < rows, output < outputs
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for group in range(groups):
        integers = tl.zeros((BLOCK, BLOCK), dtype=tl.int32)
        first = group * group_size
        last = tl.minimum(first + group_size, columns)
        for start in range(first, last, BLOCK):
            column = start + inner
            column_in = column < last
            x = tl.load(
                x_ptr + row[:, None] * columns + column[None, :], mask=row_in[:, None] & column_in[None, :], other=0
            )
            codes = tl.load(
                codes_ptr + output[None, :] * columns + column[:, None],
                mask=output_in[None, :] & column_in[:, None],
                other=0,
            )
            integers += tl.dot(x, codes, out_dtype=tl.int32)
        scale = tl.load(scale_ptr + output * scale_row_stride + group, mask=output_in, other=0.0)
        total += integers.to(tl.float32) * scale[None, :]
    x_scale = tl.load(x_scale_ptr + row, mask=row_in, other=1.0)
    total = total / x_scale[:, None]
    tl.store(out_ptr + row[:, None] * outputs + output[None, :], total, mask=row_in[:, None] & output_in[None, :])


def scaled_product(x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, spec: TernarySpec) -> Tensor:
    """Return what `quant.int8.scaled_product` returns, for tensors on a GPU."""
    if triton is None:
        raise MissingDependencyError("quant.int8_triton: Triton is missing; pip install triton")
    (rows, columns), outputs = x.shape, codes.shape[0]
    group_size = spec.group_size if spec.granularity == "group" else columns
    groups = -(-columns // group_size)
    out = torch.empty(rows, outputs, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(rows, _BLOCK), triton.cdiv(outputs, _BLOCK))
    stride = {"tensor": 0, "row": 1, "group": groups}[spec.granularity]
    _kernel[grid](
        x.contiguous(), x_scale.float().contiguous(), codes.contiguous(), scale.float().contiguous(), out,
        rows, outputs, columns, group_size, groups, stride, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
