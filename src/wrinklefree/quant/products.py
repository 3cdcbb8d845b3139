"""In what numbers a model's ternary layers compute their forward products, and how many really did.

``float`` multiplies rounded inputs and weights as floats; ``int8`` (`quant.int8`) and ``fp8`` (`quant.fp8`) use 8-bit
units where a layer allows it. Where it does not, the product is computed in float: counted by reason, said once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.quant import fp8
from wrinklefree.quant.bitlinear import BitLinear, bit_linears
from wrinklefree.quant.fp8 import Scaling
from wrinklefree.quant.int8 import int8_linear

Compute = Literal["float", "int8", "fp8"]
COMPUTES: tuple[Compute, ...] = ("float", "int8", "fp8")


class Products:
    """The forward products of one model's layers: in int8 or fp8 where that is possible, counted either way."""

    def __init__(
        self,
        kind: Compute,
        scaling: Scaling = "rowwise",
        min_size: int = 512,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        if kind not in COMPUTES:
            raise unknown_name("model.compute", kind, COMPUTES)
        if scaling not in fp8.SCALINGS:
            raise unknown_name("model.fp8_scaling", scaling, fp8.SCALINGS)
        self.kind, self.scaling, self.min_size, self._say = kind, scaling, min_size, say
        self.counts: Counter[str] = Counter()

    def product(self, layer: BitLinear, x: Tensor) -> Tensor | None:
        """Return the layer's product with ``x [..., I]`` without its bias, or None when it must be a float product."""
        refused = self._refusal(layer, x)
        if refused is not None:
            if f"float: {refused}" not in self.counts:
                self._say(f"WARNING: model.compute={self.kind}: some products are computed in float: {refused}.")
            self.counts[f"float: {refused}"] += 1
            return None
        self.counts[self.kind] += 1
        held = layer.held()
        weight = layer.effective_weight(held)
        if self.kind == "int8":
            return int8_linear(x, weight, held.integers(), held.scale, layer.spec)
        low = held.derive(f"fp8 {self.scaling}", lambda value: fp8.to_fp8(value, self.scaling))
        return fp8.fp8_linear(layer.rounded_input(x), weight, low, self.scaling)

    def summary(self) -> str:
        """Return one line: how many products were computed in which numbers."""
        total = self.counts.total()
        parts = [f"{name} {count:,} ({count / total:.1%})" for name, count in self.counts.most_common()]
        return f"forward products: {', '.join(parts) or 'none'}"

    def _refusal(self, layer: BitLinear, x: Tensor) -> str | None:
        if self.kind == "fp8":
            return fp8.refusal(x, layer.out_features, layer.in_features, self.min_size, self.scaling)
        if layer.strength.value != 1.0:
            return "strength below 1"
        if layer.spec.quantizer != "absmean":
            return f"quantizer {layer.spec.quantizer}"
        if layer.kept_columns is not None:
            return "columns kept in full precision"
        return None if x.device.type in ("cpu", "cuda") else f"no int8 products on {x.device.type}"


def set_products(model: nn.Module, products: Products | None, exclude: Sequence[str] = ()) -> int:
    """Let the ternary layers of ``model`` compute with ``products``, but for those excluded; return how many do.

    ``exclude``: last parts of layer names (``down_proj``), or whole names.

    Raises: InputError for an exclusion that matches no layer.
    """
    layers = dict(bit_linears(model))
    names = {name for full in layers for name in (full, full.rpartition(".")[2])}
    for name in exclude:
        if name not in names:
            raise unknown_name("layer in model.compute_exclude", name, {full.rpartition(".")[2] for full in layers})
    used = 0
    for full, layer in layers.items():
        excluded = full in exclude or full.rpartition(".")[2] in exclude
        layer.products = None if excluded else products
        used += not excluded
    if products is not None and not used:
        raise InputError(f"model.compute={products.kind}: no ternary layer is left to compute so")
    return used
