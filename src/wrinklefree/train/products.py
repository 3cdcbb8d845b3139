"""Int8 and fp8 products in a run: switched on for the student, their counts kept and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import nn

from wrinklefree.data.build import TrainingData
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.products import Products, set_products
from wrinklefree.train.metrics import say
from wrinklefree.train.position import Position
from wrinklefree.train.recipe import Recipe


def build_products(recipe: Recipe, student: nn.Module, data: TrainingData) -> ProductsCompanion | None:
    """Let the student compute as the recipe says; return the companion that reports it, None for float.

    Raises: InputError for an excluded layer that is none, or when no ternary layer would be left.
    """
    model = recipe.model
    if model.compute == "float":
        return None
    products = Products(model.compute, model.fp8_scaling, model.fp8_min_size, say)
    used, total = set_products(student, products, model.compute_exclude), len(list(bit_linears(student)))
    say(f"model.compute={model.compute}: asked for in {used} of {total} ternary layers.")
    return ProductsCompanion(products)


class ProductsCompanion:
    """A `Companion`: logs how many forward products were in 8 bits, and how many not; resumes its counts."""

    name = "products"

    def __init__(self, products: Products) -> None:
        self.products = products

    def before_step(self, position: Position, progress: float) -> None:
        """Nothing needs preparing."""

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Report the counts since the run began."""
        low = self.products.counts[self.products.kind]
        return {f"products/{self.products.kind}": low, "products/float": self.products.counts.total() - low}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": dict(self.products.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.products.counts = Counter(state["counts"])


def products_summary(student: nn.Module) -> str | None:
    """Return one line about the products of a run that asked for int8 or fp8, else None."""
    for _, layer in bit_linears(student):
        if isinstance(layer.products, Products):
            return layer.products.summary()
    return None
