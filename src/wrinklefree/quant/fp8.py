"""The product of a layer in 8-bit floating point (e4m3): an operand's largest value is scaled to the format's 448.

Only the forward product is in fp8; gradients are products of the operands as they were before the cast. Ternary codes
with a scale for each row are exact in e4m3, int8 inputs are not (three bits of mantissa), so this rounds a second time.
`quant.int8` does not.

Source: NVIDIA, Micikevicius et al., arXiv 2209.05433 (the format); scaling: one factor for each token and output row,
or one for each tensor. Differs: arXiv 2412.19437 scales tiles of 128 and adds up in float32 every 128 columns.

Shape letters: N tokens, I input features, O output features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Scaling = Literal["rowwise", "tensorwise"]
SCALINGS: tuple[Scaling, ...] = ("rowwise", "tensorwise")
LARGEST = 448.0  # of e4m3
_MULTIPLE = 16  # what torch._scaled_mm asks of I and O
_SMALLEST_PEAK = 1e-12


@dataclass(frozen=True)
class Fp8Tensor:
    """``codes`` e4m3 ``[R, I]`` and the float32 factor ``[R, 1]`` or ``[1, 1]`` that gives the values back."""

    codes: Tensor
    factor: Tensor


def to_fp8(x: Tensor, scaling: Scaling) -> Fp8Tensor:
    """Return ``x [R, I]`` in e4m3 with one factor for each row, or one for all."""
    wide = x.detach().float()
    peak = wide.abs().amax(dim=-1, keepdim=True) if scaling == "rowwise" else wide.abs().amax().reshape(1, 1)
    factor = peak.clamp(min=_SMALLEST_PEAK) / LARGEST
    # The division may round above the largest value, which e4m3fn would turn into NaN.
    return Fp8Tensor((wide / factor).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), factor)


def fp8_product(x: Tensor, weight: Fp8Tensor, scaling: Scaling) -> Tensor:
    """Return ``x [N, I] @ weight [O, I]^T`` as bfloat16 ``[N, O]``, from e4m3 operands."""
    left = to_fp8(x, scaling)
    # The second operand must be column-major: the transpose of a row-major weight, not a copy of it.
    right, factors = weight.codes.t(), weight.factor.t()
    if scaling == "tensorwise":
        return torch._scaled_mm(
            left.codes, right, left.factor.reshape(()), factors.reshape(()), out_dtype=torch.bfloat16
        )
    return torch._scaled_mm(left.codes, right, left.factor, factors.contiguous(), out_dtype=torch.bfloat16)


def fp8_product_reference(x: Tensor, weight: Fp8Tensor, scaling: Scaling) -> Tensor:
    """Return what `fp8_product` rounds to bfloat16, by plain float32 arithmetic; runs everywhere."""
    left = to_fp8(x, scaling)
    return (left.codes.float() @ weight.codes.float().t()) * left.factor * weight.factor.t()


def refusal(x: Tensor, outputs: int, inputs: int, min_size: int, scaling: Scaling) -> str | None:
    """Return why the product of ``x [..., I]`` with a weight ``[O, I]`` cannot be in fp8, None when it can."""
    if min(outputs, inputs) < min_size:
        return f"layers below model.fp8_min_size={min_size}"
    if outputs % _MULTIPLE or inputs % _MULTIPLE:
        return f"sizes not divisible by {_MULTIPLE}"
    if x.device.type == "cuda":
        needed = (9, 0) if scaling == "rowwise" else (8, 9)
        return None if torch.cuda.get_device_capability(x.device) >= needed else "this GPU has no fp8 products"
    return None if x.device.type == "cpu" else f"no fp8 products on {x.device.type}"


class _Fp8Product(torch.autograd.Function):
    """(inputs, weight, weight in e4m3) -> the product; gradients from inputs and weight in the gradient's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, low: Fp8Tensor, scaling: Scaling, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, weight)
        return fp8_product(x.flatten(0, -2), low, scaling).to(dtype).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = (gradient @ weight.to(gradient.dtype)).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            for_weight = (gradient.t() @ x.flatten(0, -2).to(gradient.dtype)).to(weight.dtype)
        return for_x, for_weight, None, None, None


def fp8_linear(x: Tensor, weight: Tensor, low: Fp8Tensor, scaling: Scaling) -> Tensor:
    """Return ``x [..., I] @ weight [O, I]^T`` computed in e4m3, in the dtype a linear layer would give.

    ``low`` is ``weight`` in e4m3, made once for all products with the same weight.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    product: Tensor = _Fp8Product.apply(x, weight, low, scaling, dtype)
    return product
