"""The element-wise passes of a training step in C++ (`native/training`): several of torch's passes in one.

They work on tensors in a processor's memory, round to bfloat16 between matrix products and compute in float32. What
they compute is what `quant.activation` and `quant.ternary` say; those stay the specification.

Shape letters: N rows (tokens), D columns, O and I outputs and inputs of a weight, G its scale groups along a row.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from wrinklefree.artifact.native import load_native
from wrinklefree.errors import MissingDependencyError
from wrinklefree.quant.bitlinear import CLIP_IN_SCALES, BitLinear
from wrinklefree.quant.ternary import absmean_scale, storable

_BF16 = torch.bfloat16
_VERSION = 1  # of native/bindings/training_bindings.cc


@cache
def passes(kernels: str = "auto") -> Any | None:
    """Return the compiled passes (``kernels``: avx512, avx2, plain or the best); None without this version of them."""
    try:
        native = load_native()
    except MissingDependencyError:
        return None
    return native.Training(kernels) if getattr(native, "training_version", 0) == _VERSION else None


def norm_quantize(
    x: Tensor, added: Tensor | None, weight: Tensor, eps: float, backward: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return y = x + added, Q(RMSNorm(y)) bfloat16, the same transposed when ``backward`` needs it, and 1 / RMS.

    ``x`` float32 ``[N, D]``, ``added`` bfloat16 ``[N, D]`` or None (then y is x), ``weight`` float32 ``[D]``;
    ``[N, D]``, ``[N, D]``, ``[D, N]``, ``[N]``.
    """
    rows, columns = x.shape
    total = x if added is None else torch.empty_like(x)
    rounded, factor = x.new_empty(rows, columns, dtype=_BF16), x.new_empty(rows)
    turned = x.new_empty(columns, rows, dtype=_BF16) if backward else None
    _native().norm_quantize(
        x, added, weight.detach(), eps, None if added is None else total, rounded, turned, factor, _threads()
    )
    return total, rounded, turned, factor


def norm_gradient(
    y: Tensor, factor: Tensor, weight: Tensor, gradient: Tensor, upstream: Tensor, narrow: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return the gradients of `norm_quantize`: for y, added to ``upstream``; that in bfloat16; for the weight.

    Straight through the rounding. ``gradient`` bfloat16 ``[N, D]``, ``upstream`` float32 ``[N, D]``.
    """
    out, for_weight = torch.empty_like(y), torch.zeros_like(weight)
    small = torch.empty_like(gradient) if narrow else None
    _native().norm_gradient(y, factor, weight.detach(), gradient, upstream, out, small, for_weight, _threads())
    return out, small, for_weight


def quantize(x: Tensor, gated: bool, backward: bool) -> tuple[Tensor, Tensor | None]:
    """Return Q(x) of ``x`` bfloat16 ``[N, D]``, and the same ``[D, N]`` when ``backward`` needs it.

    ``gated``: ``x [N, 2 D]`` is gate and up side by side, and Q(silu(gate) * up) is returned.
    """
    rows, columns = x.shape[0], x.shape[1] // (2 if gated else 1)
    rounded = x.new_empty(rows, columns)
    turned = x.new_empty(columns, rows) if backward else None
    _native().quantize(x, gated, rounded, turned, _threads())
    return rounded, turned


def gate_gradient(x: Tensor, upstream: Tensor) -> Tensor:
    """Return the gradient of ``silu(gate) * up`` for ``x [N, 2 D]``, bfloat16, from that of the product ``[N, D]``."""
    out = torch.empty_like(x)
    _native().gate_gradient(x, upstream, out, _threads())
    return out


def split_heads(
    joined: Tensor, cosines: Tensor, sines: Tensor, heads: int, key_heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return rotated queries ``[B, H, T, E]`` and keys and plain values ``[B, K, T, E]`` of ``[B, T, (H + 2 K) E]``."""
    batch, length, width = joined.shape
    size = width // (heads + 2 * key_heads)
    q = joined.new_empty(batch, heads, length, size)
    k, v = (joined.new_empty(batch, key_heads, length, size) for _ in range(2))
    _native().rotary(False, cosines, sines, joined, q, k, v, _threads())
    return q, k, v


def join_heads(q: Tensor, k: Tensor, v: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Return the gradient ``[B, T, (H + 2 K) E]`` of the joined projections, from those that `split_heads` made."""
    batch, heads, length, size = q.shape
    joined = q.new_empty(batch, length, (heads + 2 * k.shape[1]) * size)
    _native().rotary(True, cosines, sines, joined, q, k, v, _threads())
    return joined


def attention_gradient(scores: Tensor, products: Tensor, mask: Tensor, log_sum: Tensor, scale: float) -> None:
    """Turn scores q . k into probabilities and dL/d probabilities into dL/d (q . k), in place.

    ``scores``, ``products`` bfloat16 ``[B K, H / K T, T]``, ``mask`` bool ``[B, 1, T, T]``, ``log_sum`` float32
    ``[B, T, H]``: the logarithm of the sum over keys of exp(scale * score).
    """
    _native().attention_gradient(scores, products, mask, log_sum, scale, _threads())


def distill(
    student: Tensor, teacher: Tensor, targets: Tensor, temperature: float, step: float, target_step: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return KL(p || q) and -log softmax(student)[target] of each row, and whether both models' first choices agree.

    p and q are the softmaxes of teacher's and student's logits, bfloat16 ``[N, V]``, over ``temperature``; ``targets``
    int64 ``[N]``. In place of the student's logits comes step (q - p) + target_step (softmax(student) - target),
    unless both steps are 0. Float32, float32 and bool ``[N]``.
    """
    divergence, entropy = (torch.empty(len(student), dtype=torch.float32) for _ in range(2))
    agreed = torch.empty(len(student), dtype=torch.bool)
    _native().distill(
        student, teacher, targets, temperature, step, target_step, divergence, entropy, agreed, _threads()
    )
    return divergence, entropy, agreed


def weight_scale(layer: BitLinear) -> tuple[Tensor, int]:
    """Return the scales of a layer ``[O, G]`` as they are stored, float32, and how many columns share one."""
    spec, (rows, columns) = layer.spec, layer.weight.shape
    latent = layer.weight.detach()
    learned = layer.weight_scale
    scale = absmean_scale(latent, spec) if learned is None else storable(learned.detach(), spec)
    if spec.granularity == "group":
        return scale, spec.group_size
    return scale.expand(rows).reshape(rows, 1).contiguous(), columns


def quantize_weight(layer: BitLinear, scale: Tensor, group: int, out: Tensor) -> None:
    """Write codes * scale of a layer's float32 weight ``[O, I]`` into ``out``, bfloat16."""
    _native().weight_quantize(layer.weight.detach(), scale, group, out, None, _threads())


def weight_gradient(
    layer: BitLinear, scale: Tensor, group: int, gradient: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of a layer's latents and (when ``wanted``) of its learned scales, in their own shape.

    ``gradient`` bfloat16 ``[O, I]``: of the quantised weight; rows or columns may be contiguous. The rule is that of
    `quant.bitlinear`: straight through, but zero beyond ``CLIP_IN_SCALES`` when the scale is learned.
    """
    latent, learned = layer.weight.detach(), layer.weight_scale
    out = torch.empty_like(latent)
    for_scale = torch.empty_like(scale) if wanted and learned is not None else None
    clip = float("inf") if learned is None else CLIP_IN_SCALES
    _native().weight_gradient(gradient, latent, scale, group, clip, out, for_scale, _threads())
    if for_scale is None or learned is None:
        return out, None
    return out, for_scale.sum().reshape(1) if layer.spec.granularity == "tensor" else for_scale.view_as(learned)


def _native() -> Any:
    found = passes()
    assert found is not None, "the caller asked `passes` first"
    return found


def _threads() -> int:
    return torch.get_num_threads()
