"""`BitLinear`: a linear layer whose weights are ternary and whose inputs are int8, trained straight through.

Each model owns one `QuantStrength` (the lambda of the warm-up schedules); its layers share that object and no other
model ever sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant.activation import fake_quantize_activation
from wrinklefree.quant.ternary import (
    TernarySpec,
    absmean_scale,
    expand_scale,
    round_clip,
    storable,
    ternarize,
)

# A latent further than this many scales from zero no longer receives a gradient when its scale is learned: it could
# only grow, and would then need as many steps to come back. Half a scale beyond the last rounding threshold.
CLIP_IN_SCALES = 1.5


class QuantStrength:
    """How much of the quantisation is applied, from 0 (none) to 1 (all); one object for each model.

    ``held`` is the identity of the present `held_codes` block, None outside of one.
    """

    __slots__ = ("_value", "held")

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.held: object | None = None

    @property
    def value(self) -> float:
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise InputError(f"quantisation strength: found {value}, allowed is 0 to 1")
        self._value = float(value)


class _TernaryWeight(torch.autograd.Function):
    """(latent, expanded scale, codes) -> codes * scale.

    The latent's gradient passes straight through within ``CLIP_IN_SCALES`` scales and is zero beyond; the scale's is
    the gradient times the code, the derivative of codes * scale at fixed codes.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(latent, scale, codes)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        latent, scale, codes = ctx.saved_tensors
        gradient = gradients[0]
        inside = latent.abs() <= CLIP_IN_SCALES * scale
        scale_gradient = (gradient * codes).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return gradient * inside, scale_gradient, None


@dataclass
class _Held:
    """``codes`` [O, I] in the latents' dtype and ``scale`` expanded to them, of one `held_codes` block (or none)."""

    block: object | None
    codes: Tensor
    scale: Tensor
    product: Tensor | None = None

    def quantized(self) -> Tensor:
        """Return codes * scale [O, I], without gradient."""
        if self.product is None:
            with torch.no_grad():
                self.product = self.codes * self.scale
        return self.product


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and int8 inputs.

    ``weight`` ``[O, I]`` holds the latents. ``weight_scale`` is None for the absmean rule, or a parameter of the
    shape ``spec.scale_shape(O, I)`` that calibration fitted and training may learn.
    With strength 0 the layer is exactly ``nn.Linear``.

    Source: arXiv 2402.17764; strength lambda as w + lambda (Q(w) - w).detach() after the Hugging Face 1.58-bit recipe.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        spec: TernarySpec,
        strength: QuantStrength,
        **factory: Any,
    ) -> None:
        super().__init__(in_features, out_features, bias=bias, **factory)
        self.spec = spec
        self.strength = strength
        self.weight_scale: nn.Parameter | None
        self.register_parameter("weight_scale", None)
        self._cache: _Held | None = None

    @classmethod
    def from_linear(cls, linear: nn.Linear, spec: TernarySpec, strength: QuantStrength) -> BitLinear:
        """Return a layer that shares the parameters of ``linear``."""
        layer = cls(
            linear.in_features, linear.out_features, linear.bias is not None, spec, strength, device="meta",
            dtype=linear.weight.dtype,
        )  # fmt: skip
        layer.weight = linear.weight
        layer.bias = linear.bias
        return layer

    def set_scale(self, scale: Tensor) -> None:
        """Give the layer its own scales of the shape ``spec.scale_shape(O, I)`` instead of absmean.

        Raises: InputError for another shape.
        """
        expected = self.spec.scale_shape(self.out_features, self.in_features)
        if tuple(scale.shape) != expected:
            raise InputError(f"weight_scale: found shape {tuple(scale.shape)}, needed is {expected}")
        self.weight_scale = nn.Parameter(scale.detach().to(self.weight.device, torch.float32).clone())

    def ternary(self) -> tuple[Tensor, Tensor]:
        """Return what export writes: codes int8 ``[O, I]`` and float32 scales ``[1]``, ``[O]`` or ``[O, G]``."""
        return ternarize(self.weight, self.spec, self.weight_scale)

    def effective_weight(self) -> Tensor:
        """Return the weight ``[O, I]`` the forward uses at the present strength, differentiable."""
        strength = self.strength.value
        if strength == 0.0:
            return self.weight
        held = self._held()
        if not torch.is_grad_enabled():
            return held.quantized() if strength == 1.0 else torch.lerp(self.weight, held.quantized(), strength)
        if self.weight_scale is None:
            # Straight-through: value codes * scale, gradient of the identity.
            return self.weight + strength * (held.quantized() - self.weight).detach()
        live = expand_scale(_straight_storable(self.weight_scale, self.spec), self.spec, self.in_features)
        quantized: Tensor = _TernaryWeight.apply(self.weight, live.to(self.weight.dtype), held.codes)
        return quantized if strength == 1.0 else torch.lerp(self.weight, quantized, strength)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q(x) Q(w)^T + b`` for ``x [..., I]``, to the degree of the model's strength."""
        if self.strength.value == 0.0:
            return F.linear(x, self.weight, self.bias)
        quantized = fake_quantize_activation(x, self.strength.value)
        return F.linear(quantized, self.effective_weight().to(x.dtype), self.bias)

    def _held(self) -> _Held:
        """The codes and scales of now; computed once for a `held_codes` block."""
        block = self.strength.held
        if block is not None and self._cache is not None and self._cache.block is block:
            return self._cache
        with torch.no_grad():
            scale = self.weight_scale
            stored = absmean_scale(self.weight, self.spec) if scale is None else storable(scale, self.spec)
            expanded = expand_scale(stored, self.spec, self.in_features)
            codes = round_clip(self.weight.float(), expanded).to(self.weight.dtype)
            held = _Held(block, codes, expanded.to(self.weight.dtype))
        self._cache = None if block is None else held
        return held


def _straight_storable(scale: Tensor, spec: TernarySpec) -> Tensor:
    """The stored value of a learned scale, with the gradient of the identity."""
    return scale + (storable(scale.detach(), spec) - scale.detach())


def bit_linears(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Yield the name and the layer of every `BitLinear` of ``model``."""
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            yield name, module


def quant_strength(model: nn.Module) -> QuantStrength:
    """Return the strength that the layers of ``model`` share.

    Raises: InputError when the model has no `BitLinear`.
    """
    for _, layer in bit_linears(model):
        return layer.strength
    raise InputError(f"{type(model).__name__} has no ternary layer; convert it first (wf convert)")


@contextmanager
def held_codes(model: nn.Module) -> Iterator[None]:
    """Compute the codes of ``model`` once and reuse them: the parameters must not change inside the block.

    For the micro-batches of one optimizer step, and for evaluation. It must be asked for, because a change of the
    parameters cannot be seen: fused optimizers do not raise a tensor's version counter.
    """
    layer = next(bit_linears(model), None)
    if layer is None:
        yield
        return
    strength = layer[1].strength
    strength.held = object()
    try:
        yield
    finally:
        strength.held = None
        for _, each in bit_linears(model):
            each._cache = None


@contextmanager
def full_strength(model: nn.Module) -> Iterator[None]:
    """Evaluate at strength 1, whatever the schedule says, and restore it. A model without `BitLinear` is left alone."""
    layer = next(bit_linears(model), None)
    if layer is None:
        yield
        return
    strength = layer[1].strength
    before = strength.value
    strength.value = 1.0
    try:
        yield
    finally:
        strength.value = before
