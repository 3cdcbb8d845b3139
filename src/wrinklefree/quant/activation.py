"""Int8 activations: one scale per token, symmetric, as every engine of ours computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_PEAK = 1e-5


def activation_scale(x: Tensor) -> Tensor:
    """Return 127 / max|x| over the last dimension, kept as size 1; the peak is at least ``MIN_PEAK``.

    Source: arXiv 2402.17764 (absmax per token).
    """
    if x.dtype is torch.float32:  # twice as fast as max|x| on a CPU: no tensor of magnitudes is written
        peak = torch.maximum(x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True).neg_())
    else:
        peak = x.abs().amax(dim=-1, keepdim=True)
    return 127.0 / peak.clamp_(min=MIN_PEAK)


def quantize_activation(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes of ``x [..., D]`` and the factor ``127 / max|x|`` ``[..., 1]`` that made them."""
    scale = activation_scale(x)
    return _rounded(x, scale).to(torch.int8), scale


def _rounded(x: Tensor, scale: Tensor) -> Tensor:
    codes = (x * scale).round_()
    # In float32 the peak times its own scale is within 2^-22 of 127, so nothing is left to clip; the narrow formats
    # may round it to 128.
    return codes if x.dtype is torch.float32 else codes.clamp_(-128, 127)


class _FakeQuantize(torch.autograd.Function):
    """x -> x + strength * (Q(x) - x), with the gradient of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        scale = activation_scale(x)
        quantized = _rounded(x, scale).div_(scale)
        return quantized if strength == 1.0 else torch.lerp(x, quantized, strength)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def fake_quantize_activation(x: Tensor, strength: float) -> Tensor:
    """Return ``x [..., D]`` with its int8 rounding applied to the degree ``strength`` in [0, 1].

    The gradient passes straight through. Source: arXiv 2402.17764; strength: the Hugging Face 1.58-bit recipe.
    """
    if strength == 0.0:
        return x
    quantized: Tensor = _FakeQuantize.apply(x, strength)
    return quantized
