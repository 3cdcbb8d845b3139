"""The product of a ternary layer in integers: int8 inputs times ternary codes, summed in int32, scaled once.

It is what the fake-quantised float product approximates: the integers are exact, only the scaling rounds. Gradients are
those of the float product (straight through), and the inputs are kept for it in a quarter of the memory.

Shape letters: N tokens, I input features, O output features, G scale groups along a row.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.quant.activation import quantize_activation
from wrinklefree.quant.ternary import TernarySpec

# What torch._int_mm asks for on CUDA: more than 16 rows, the other two sizes divisible by 8.
_CUDA_ROWS, _CUDA_MULTIPLE = 17, 8


def integer_product(x: Tensor, codes: Tensor) -> Tensor:
    """Return ``x [N, I] @ codes [O, I]^T`` of int8 tensors as int32 ``[N, O]``, exact."""
    if x.device.type != "cuda":
        if x.shape[1] == 1:  # of one column torch 2.13 returns something else, without an error
            x, codes = F.pad(x, (0, 1)), F.pad(codes, (0, 1))
        return torch._int_mm(x, codes.t())
    rows, outputs = x.shape[0], codes.shape[0]
    tail = -x.shape[1] % _CUDA_MULTIPLE
    x = F.pad(x, (0, tail, 0, max(_CUDA_ROWS - rows, 0)))
    codes = F.pad(codes, (0, tail, 0, -outputs % _CUDA_MULTIPLE))
    return torch._int_mm(x, codes.t())[:rows, :outputs]


def scaled_product(x: Tensor, x_scale: Tensor, codes: Tensor, scale: Tensor, spec: TernarySpec) -> Tensor:
    """Return ``(x / x_scale) @ (codes * scale)^T`` as float32 ``[N, O]``.

    ``x`` int8 ``[N, I]``, ``x_scale [N, 1]``, ``codes`` int8 ``[O, I]``, ``scale`` of ``spec.scale_shape(O, I)``.
    Scales of groups need an integer product for each group, since only integers of one scale may be added.
    """
    if spec.granularity != "group":
        # Exact in float32 up to 132,000 input features: |sum| <= 127 I < 2^24.
        return integer_product(x, codes).float().mul_(scale.float()[None]).div_(x_scale.float())
    if x.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from wrinklefree.quant.int8_triton import scaled_product as fused

        return fused(x, x_scale, codes, scale, spec)
    total = torch.zeros(x.shape[0], codes.shape[0], device=x.device)
    for group, start in enumerate(range(0, x.shape[1], spec.group_size)):
        part = slice(start, start + spec.group_size)
        total.addcmul_(integer_product(x[:, part], codes[:, part]).float(), scale[:, group].float()[None])
    return total.div_(x_scale.float())


class _Int8Product(torch.autograd.Function):
    """(inputs, weight, codes, scale) -> the product, with the gradients of ``rounded inputs @ weight^T``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, spec: TernarySpec) -> Tensor:
        rows = x.flatten(0, -2)
        integers, x_scale = quantize_activation(rows)
        ctx.save_for_backward(integers, x_scale, weight)
        ctx.input = x.shape, x.dtype
        product = scaled_product(integers, x_scale, codes, scale, spec)
        return product.to(_product_dtype(x)).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        integers, x_scale, weight = ctx.saved_tensors
        shape, dtype = ctx.input
        gradient = gradients[0].flatten(0, -2)
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = (gradient @ weight.to(gradient.dtype)).to(dtype).view(shape)
        if ctx.needs_input_grad[1]:
            rounded = integers.to(x_scale.dtype).div_(x_scale)
            for_weight = (gradient.t() @ rounded.to(gradient.dtype)).to(weight.dtype)
        return for_x, for_weight, None, None, None


def int8_linear(x: Tensor, weight: Tensor, codes: Tensor, scale: Tensor, spec: TernarySpec) -> Tensor:
    """Return ``Q(x) @ (codes * scale)^T`` for ``x [..., I]`` in the dtype of ``x``, computed in integers.

    ``weight [O, I]`` is codes * scale as the graph knows it: it receives the weight's gradient. Under autocast the
    result has autocast's dtype, as that of a linear layer.
    """
    product: Tensor = _Int8Product.apply(x, weight, codes, scale, spec)
    return product


def _product_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
