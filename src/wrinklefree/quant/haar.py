"""Ternary weights in the Haar domain: a row's sums and differences of neighbours are rounded, each band for itself.

Pairs of columns (a, b) become low (a + b) / sqrt(2) and high (a - b) / sqrt(2), one level, orthonormal: lengths are
kept, so an error of the coefficients is an error of the same size of the weights. Where neighbours are alike but for
small differences, these get a small scale of their own. A last column without a neighbour is low as it is.

Source: the transform is A. Haar's (1910); ternarising its bands with absmean scales is after HBLLM, arXiv 2512.00862,
which rounds the bands to one bit. Differs: ternary and trained straight through, no saliency and no group means.

Shape letters: O output features (rows), I input features (columns), L = ceil(I / 2) low, H = I - L high coefficients.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wrinklefree.quant.ternary import TernarySpec, dequantize, ternarize

_HALF = math.sqrt(0.5)


def haar_forward(weight: Tensor) -> Tensor:
    """Return the coefficients ``[..., L + H]``, the low band first, of the rows of ``weight [..., I]``."""
    pairs = weight.shape[-1] // 2
    even, odd = weight[..., 0 : 2 * pairs : 2], weight[..., 1 : 2 * pairs : 2]
    return torch.cat([(even + odd) * _HALF, weight[..., 2 * pairs :], (even - odd) * _HALF], dim=-1)


def haar_inverse(coefficients: Tensor) -> Tensor:
    """Return the rows ``[..., I]`` whose `haar_forward` is ``coefficients [..., L + H]``."""
    pairs = coefficients.shape[-1] // 2
    low, high = coefficients[..., :pairs], coefficients[..., coefficients.shape[-1] - pairs :]
    rows = torch.stack([(low + high) * _HALF, (low - high) * _HALF], dim=-1).flatten(-2)
    return torch.cat([rows, coefficients[..., pairs : coefficients.shape[-1] - pairs]], dim=-1)


def haar_ternarize(weight: Tensor, spec: TernarySpec) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return codes int8 ``[O, L + H]`` of the coefficients of ``weight [O, I]``, and the scales of the two bands.

    Each band is ternarised with absmean scales as ``spec`` says, as if it were a weight of its own. A row of one column
    has no high band; its scales are then empty.
    """
    coefficients = _transforms(weight)[0](weight.detach().float())
    low, high = (ternarize(band, spec) if band.shape[1] else _nothing(band) for band in _bands(coefficients))
    return torch.cat([low[0], high[0]], dim=1), (low[1], high[1])


def haar_dequantize(codes: Tensor, scales: tuple[Tensor, Tensor], spec: TernarySpec) -> Tensor:
    """Return the weight float32 ``[O, I]`` of what `haar_ternarize` returned."""
    bands = [
        dequantize(band, scale, spec) if band.shape[1] else band.float()
        for band, scale in zip(_bands(codes), scales, strict=True)
    ]
    return _transforms(codes)[1](torch.cat(bands, dim=1))


def haar_quantize(weight: Tensor, spec: TernarySpec) -> Tensor:
    """Return transform -> ternary by band -> inverse of ``weight [O, I]`` in its dtype, gradient straight through."""
    quantized: Tensor = _HaarQuantize.apply(weight, spec)
    return quantized


class _HaarQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, spec: TernarySpec) -> Tensor:
        return haar_dequantize(*haar_ternarize(weight, spec), spec).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _transforms(tensor: Tensor) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The forward and the inverse for where ``tensor`` is: one pass each on a GPU with Triton."""
    if tensor.device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        from wrinklefree.quant import haar_triton

        return haar_triton.haar_forward, haar_triton.haar_inverse
    return haar_forward, haar_inverse


def _bands(coefficients: Tensor) -> tuple[Tensor, Tensor]:
    low = -(-coefficients.shape[1] // 2)
    return coefficients[:, :low], coefficients[:, low:]


def _nothing(band: Tensor) -> tuple[Tensor, Tensor]:
    return band.to(torch.int8), band.new_zeros(0)
