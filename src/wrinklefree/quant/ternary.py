"""The ternary rule: scale, round, clip. One statement of it, used by training, calibration and export.

Shape letters: O output features (rows), I input features (columns), G scale groups along a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.artifact.packing import GRANULARITIES, Granularity, check_group_size
from wrinklefree.errors import unknown_name

# Smallest scale: a row or group of zeros must not divide by zero. A normal float16 number, so that group scales
# survive their stored type.
MIN_SCALE = 1e-4


Quantizer = Literal["absmean", "haar"]
QUANTIZERS: tuple[Quantizer, ...] = ("absmean", "haar")


@dataclass(frozen=True)
class TernarySpec:
    """How fine the scales are: one per ``tensor``, per ``row``, or per ``group`` of columns of a row.

    ``quantizer``: what becomes ternary, the weights (absmean) or the Haar bands of their rows (`quant.haar`).
    The functions of this module round what they are given, whichever it is.
    """

    granularity: Granularity = "group"
    group_size: int = 64
    quantizer: Quantizer = "absmean"

    def __post_init__(self) -> None:
        if self.granularity not in GRANULARITIES:
            raise unknown_name("scale granularity", self.granularity, GRANULARITIES)
        if self.quantizer not in QUANTIZERS:
            raise unknown_name("quantizer", self.quantizer, QUANTIZERS)
        check_group_size(self.group_size)

    def scale_shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of the scales of a weight ``[O, I]``: ``[1]``, ``[O]`` or ``[O, G]``."""
        if self.granularity == "tensor":
            return (1,)
        if self.granularity == "row":
            return (rows,)
        return rows, -(-columns // self.group_size)


def grouped(weight: Tensor, spec: TernarySpec) -> Tensor:
    """Return ``weight [O, I]`` as ``[O, G, group_size]``, the last group filled up with zeros."""
    tail = -weight.shape[1] % spec.group_size
    padded = F.pad(weight, (0, tail)) if tail else weight
    return padded.unflatten(1, (-1, spec.group_size))


def expand_scale(scale: Tensor, spec: TernarySpec, columns: int) -> Tensor:
    """Return ``scale`` in a shape that multiplies a weight ``[O, I]``: ``[1, 1]``, ``[O, 1]`` or ``[O, I]``."""
    if spec.granularity == "tensor":
        return scale.reshape(1, 1)
    if spec.granularity == "row":
        return scale.unsqueeze(1)
    return scale.repeat_interleave(spec.group_size, dim=1)[:, :columns]


def storable(scale: Tensor, spec: TernarySpec) -> Tensor:
    """Return the scale as a file can hold it: at least ``MIN_SCALE``, group scales rounded to float16."""
    scale = scale.clamp(min=MIN_SCALE)
    return scale.half().to(scale.dtype) if spec.granularity == "group" else scale


def absmean_scale(weight: Tensor, spec: TernarySpec) -> Tensor:
    """Return mean|w| over each tensor, row or group of ``weight [O, I]``, storable.

    Source: arXiv 2402.17764, the absmean quantiser. Differs: finer than per tensor when ``spec`` says so.
    """
    return _mean(weight.detach().abs().float(), spec)


def _mean(magnitude: Tensor, spec: TernarySpec) -> Tensor:
    """The storable means of ``magnitude [O, I]`` over each tensor, row or group."""
    if spec.granularity == "tensor":
        scale = magnitude.mean().reshape(1)
    elif spec.granularity == "row":
        scale = magnitude.mean(dim=1)
    elif magnitude.shape[1] % spec.group_size == 0:
        scale = grouped(magnitude, spec).sum(dim=-1) / spec.group_size
    else:
        members = grouped(torch.ones_like(magnitude[:1]), spec).sum(dim=-1)
        scale = grouped(magnitude, spec).sum(dim=-1) / members
    return storable(scale, spec)


def round_clip(weight: Tensor, expanded_scale: Tensor) -> Tensor:
    """Return clip(round(w / scale), -1, 1), in float32 also for a narrower ``weight``.

    Source: arXiv 2402.17764, RoundClip.
    """
    return (weight / expanded_scale).round_().clamp_(-1, 1)


def ternarize(weight: Tensor, spec: TernarySpec, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return ternary codes int8 ``[O, I]`` and storable float32 scales of ``weight [O, I]``.

    ``scale`` of the shape ``spec.scale_shape`` is used when given (fitted or learned); otherwise absmean.
    """
    weight = weight.detach().float()
    scale = absmean_scale(weight, spec) if scale is None else storable(scale.detach().float(), spec)
    codes = round_clip(weight, expand_scale(scale, spec, weight.shape[1]))
    return codes.to(torch.int8), scale


def in_blocks(weight: Tensor, scale: Tensor, spec: TernarySpec) -> tuple[Tensor, Tensor]:
    """Return a view of ``weight [O, I]`` and of ``scale`` that multiply each other without a scale for each column."""
    if spec.granularity == "group" and weight.shape[1] % spec.group_size == 0:
        return weight.unflatten(1, (-1, spec.group_size)), scale.unsqueeze(-1)
    return weight, expand_scale(scale, spec, weight.shape[1])


def round_weight(weight: Tensor, spec: TernarySpec, scale: Tensor | None = None) -> Tensor:
    """Return codes * scale in the dtype of ``weight [O, I]``: the bits of `ternarize`, in fewer passes over them."""
    weight = weight.detach()
    stored = absmean_scale(weight, spec) if scale is None else storable(scale.detach().float(), spec)
    blocks, expanded = in_blocks(weight, stored, spec)
    codes = round_clip(blocks if weight.dtype is not torch.float64 else blocks.float(), expanded)
    return codes.to(weight.dtype).mul_(expanded.to(weight.dtype)).view(weight.shape)


def round_absmean(weight: Tensor, spec: TernarySpec) -> tuple[Tensor, Tensor]:
    """Return `round_weight` and `absmean_scale` of ``weight [O, I]``: the same bits, with one new tensor."""
    weight = weight.detach()
    if weight.dtype is not torch.float32:
        scale = absmean_scale(weight, spec)
        return round_weight(weight, spec, scale), scale
    buffer = weight.abs()
    scale = _mean(buffer, spec)
    blocks, expanded = in_blocks(weight, scale, spec)
    torch.div(blocks, expanded, out=buffer.view(blocks.shape)).round_().clamp_(-1, 1).mul_(expanded)
    return buffer, scale


def dequantize(codes: Tensor, scale: Tensor, spec: TernarySpec) -> Tensor:
    """Return codes * scale, float32 ``[O, I]``."""
    return codes.float() * expand_scale(scale.float(), spec, codes.shape[1])
