"""`BitLinear`: a linear layer whose weights are ternary and whose inputs are int8, trained straight through.

Each model owns one `QuantStrength` (the lambda of the warm-up schedules); its layers share that object and no other
model ever sees it.

What a training step costs beyond `nn.Linear`: one rounding of the inputs, which layers with the same input share, and
one rounding of the weights, which the micro-batches of a step share (`held_codes`). The backward does no more than
`nn.Linear`'s; only learned scales need one more look at the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant.activation import fake_quantize_activation
from wrinklefree.quant.haar import haar_quantize, haar_ternarize
from wrinklefree.quant.saliency import rest_scale
from wrinklefree.quant.ternary import TernarySpec, grouped, in_blocks, round_absmean, round_weight, storable, ternarize

# A latent further than this many scales from zero no longer receives a gradient when its scale is learned: it could
# only grow, and would then need as many steps to come back. Half a scale beyond the last rounding threshold.
CLIP_IN_SCALES = 1.5


_T = TypeVar("_T")


class ForwardProducts(Protocol):
    """Computes a layer's product in other numbers than float, where it can (`quant.products`)."""

    def product(self, layer: BitLinear, x: Tensor) -> Tensor | None: ...


@dataclass
class _RoundedInput:
    """An input, and what it was rounded to; ``owner`` computed it and is told when nobody else asked for it."""

    source: Tensor
    version: int
    differentiable: bool
    strength: float
    rounded: Tensor
    owner: BitLinear

    def is_of(self, x: Tensor, strength: float) -> bool:
        """Whether this is what ``x`` would be rounded to now."""
        same = self.source is x and self.version == x._version
        return same and self.strength == strength and self.differentiable == torch.is_grad_enabled()


class QuantStrength:
    """How much of the quantisation is applied, from 0 (none) to 1 (all); one object for each model.

    ``held`` is the identity of the present `held_codes` block, None outside of one. ``input`` is the last rounded
    input, which the next layer may share (query, key and value read the same one; gate and up, too).
    """

    __slots__ = ("_value", "held", "input")

    def __init__(self, value: float = 1.0) -> None:
        self.value = value
        self.held: object | None = None
        self.input: _RoundedInput | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantStrength:
        return QuantStrength(self._value)

    @property
    def value(self) -> float:
        return self._value

    @value.setter
    def value(self, value: float) -> None:
        if not 0.0 <= value <= 1.0:
            raise InputError(f"quantisation strength: found {value}, allowed is 0 to 1")
        self._value = float(value)


class _Straight(torch.autograd.Function):
    """(latent, value) -> value, with the gradient of the identity for the latent. Nothing is copied."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class _LearnedScale(torch.autograd.Function):
    """(latent, scale, codes * scale) -> codes * scale.

    The latent's gradient passes straight through within ``CLIP_IN_SCALES`` scales and is zero beyond; the scale's is
    the gradient times the code, the derivative of codes * scale at fixed codes, and passes straight through the
    rounding to the stored scale.
    """

    @staticmethod
    def forward(ctx: Any, latent: Tensor, scale: Tensor, value: Tensor, spec: TernarySpec) -> Tensor:
        ctx.save_for_backward(latent, scale, value)
        ctx.spec = spec
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        latent, scale, value = ctx.saved_tensors
        gradient, spec = gradients[0], ctx.spec
        stored = storable(scale, spec)
        blocks, expanded = in_blocks(latent, stored, spec)
        # A mask of ones and zeros, multiplied in place: a product with a mask of booleans takes ten times longer.
        passed = blocks.abs().le_(CLIP_IN_SCALES * expanded.to(latent.dtype)).view(latent.shape).mul_(gradient)
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            # The value is the code times the scale, so this is the sum of gradient * code.
            scale_gradient = _sums(gradient * value, spec, scale.dtype).view_as(scale) / stored
        return passed, scale_gradient, None, None


def _sums(products: Tensor, spec: TernarySpec, dtype: torch.dtype) -> Tensor:
    """Sum ``products [O, I]`` over the weights of each scale."""
    if spec.granularity == "tensor":
        return products.sum(dtype=dtype)
    if spec.granularity == "row":
        return products.sum(dim=1, dtype=dtype)
    return grouped(products, spec).sum(dim=-1, dtype=dtype)


@dataclass
class HeldWeight:
    """The quantised weight ``[O, I]`` of one `held_codes` block (or none), its scales, and its blend at ``strength``.

    ``derived``: what was made of the blend.
    """

    block: object | None
    scale: Tensor
    quantized: Tensor
    strength: float
    blended: Tensor
    derived: dict[str, Any] = field(default_factory=dict)

    @torch.no_grad()
    def derive(self, name: str, make: Callable[[Tensor], _T]) -> _T:
        """Return ``make`` of the blend ``[O, I]``; made once under ``name``."""
        if name not in self.derived:
            self.derived[name] = make(self.blended)
        made: _T = self.derived[name]
        return made

    def integers(self) -> Tensor:
        """Return the codes int8 ``[O, I]``, at full strength and with no column kept."""
        return self.derive("int8", lambda value: value.sign().to(torch.int8))


class BitLinear(nn.Linear):
    """A linear layer with ternary weights and int8 inputs.

    ``weight`` ``[O, I]`` holds the latents. ``weight_scale`` is None for the absmean rule, or a parameter of the
    shape ``spec.scale_shape(O, I)`` that calibration fitted and training may learn. ``kept_columns`` is None, or a
    mask ``[I]`` of the columns that stay in full precision (`quant.saliency`).
    With strength 0 the layer is exactly ``nn.Linear``.

    Source: arXiv 2402.17764; strength lambda as w + lambda (Q(w) - w).detach() after the Hugging Face 1.58-bit recipe.
    """

    kept_columns: Tensor | None

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
        self.register_buffer("kept_columns", None, persistent=False)
        self.products: ForwardProducts | None = None
        self._cache: HeldWeight | None = None
        self._alone: bool | None = None  # whether no other layer reads this one's inputs; None: not known yet

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

        Raises: InputError for another shape, or when the quantizer finds its own scales (haar).
        """
        if self.spec.quantizer != "absmean":
            raise InputError(f"weight_scale: quantizer {self.spec.quantizer} has no fitted scales; use absmean")
        expected = self.spec.scale_shape(self.out_features, self.in_features)
        if tuple(scale.shape) != expected:
            raise InputError(f"weight_scale: found shape {tuple(scale.shape)}, needed is {expected}")
        self.weight_scale = nn.Parameter(scale.detach().to(self.weight.device, torch.float32).clone())

    def ternary(self) -> tuple[Tensor, Tensor]:
        """Return what export writes: codes int8 ``[O, I]`` and float32 scales ``[1]``, ``[O]`` or ``[O, G]``.

        Of a haar layer, which is not exported: the codes of the coefficients, and both bands' scales in one row.
        """
        if self.spec.quantizer == "haar":
            codes, scales = haar_ternarize(self.weight, self.spec)
            return codes, torch.cat([scale.flatten() for scale in scales])
        return ternarize(self.weight, self.spec, self.weight_scale)

    @torch.no_grad()
    def quantized_weight(self) -> tuple[Tensor, Tensor]:
        """Return Q(w) ``[O, I]`` in the latents' dtype (kept columns are as they are), and its scales."""
        if self.spec.quantizer == "haar":
            quantized, scale = haar_quantize(self.weight, self.spec), self.weight.new_zeros(0)
            kept = self.kept_columns
            return (quantized if kept is None else torch.where(kept, self.weight, quantized)), scale
        if self.weight_scale is None and self.kept_columns is None:
            return round_absmean(self.weight, self.spec)
        if self.weight_scale is not None:
            scale = storable(self.weight_scale, self.spec)
        else:
            assert self.kept_columns is not None
            scale = rest_scale(self.weight, self.kept_columns, self.spec)
        quantized = round_weight(self.weight, self.spec, scale)
        if self.kept_columns is not None:
            quantized = torch.where(self.kept_columns, self.weight, quantized)
        return quantized, scale

    def effective_weight(self, held: HeldWeight | None = None) -> Tensor:
        """Return the weight ``[O, I]`` the forward uses at the present strength, differentiable.

        ``held``: what `held` returned for this forward, when it is at hand.
        """
        strength = self.strength.value
        if strength == 0.0:
            return self.weight
        held = held or self.held()
        if not torch.is_grad_enabled():
            return held.blended
        if self.weight_scale is None:
            straight: Tensor = _Straight.apply(self.weight, held.blended)
            return straight
        quantized: Tensor = _LearnedScale.apply(self.weight, self.weight_scale, held.quantized, self.spec)
        if self.kept_columns is not None:
            quantized = torch.where(self.kept_columns, self.weight, quantized)
        return quantized if strength == 1.0 else torch.lerp(self.weight, quantized, strength)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q(x) Q(w)^T + b`` for ``x [..., I]``, to the degree of the model's strength."""
        if self.strength.value == 0.0:
            return F.linear(x, self.weight, self.bias)
        if self.products is not None:
            product = self.products.product(self, x)
            if product is not None:
                return product if self.bias is None else product + self.bias.to(product.dtype)
        return F.linear(self.rounded_input(x), self.effective_weight().to(x.dtype), self.bias)

    def rounded_input(self, x: Tensor) -> Tensor:
        """Return Q(x) to the degree of the strength; computed once for the layers that read the same tensor in turn."""
        strength = self.strength.value
        if torch.compiler.is_compiling() or x.is_inference():
            return fake_quantize_activation(x, strength)
        last = self.strength.input
        if last is not None and last.is_of(x, strength):
            last.owner._alone = False
            return last.rounded
        if last is not None and last.owner._alone is None:
            last.owner._alone = True
        rounded = fake_quantize_activation(x, strength)
        # A layer that was alone with its input does not keep it again: what is kept is memory.
        self.strength.input = (
            None if self._alone else _RoundedInput(x, x._version, torch.is_grad_enabled(), strength, rounded, self)
        )
        return rounded

    def held(self) -> HeldWeight:
        """Return the quantised weight of now; computed once for a `held_codes` block."""
        block, strength = self.strength.held, self.strength.value
        held = self._cache
        if block is None or held is None or held.block is not block:
            quantized, scale = self.quantized_weight()
            held = HeldWeight(block, scale, quantized, 1.0, quantized)
        if held.strength != strength:
            with torch.no_grad():
                held.blended = torch.lerp(self.weight, held.quantized, strength) if strength != 1.0 else held.quantized
            held.strength, held.derived = strength, {}
        self._cache = None if block is None else held
        return held


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
