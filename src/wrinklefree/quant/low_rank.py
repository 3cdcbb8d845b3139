"""`LowRankBitLinear`: a ternary layer with a low-rank correction in full precision.

    y = Q(W) Q(x) + lambda U (V^T x)

The correction sees ``x`` itself, not its int8 rounding, so it can also make up for what that rounding loses. It is
scaled by the model's strength lambda: it stands in for what quantisation took away, and at strength 0 nothing was
taken, so the layer is exactly ``nn.Linear``.

Source: arXiv 2412.07902 (LRC). Differs: the strength; the paper quantises once and has no warm-up.

Shape letters: O output features, I input features, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import BitLinear, bit_linears

FACTORS = ("low_rank_u", "low_rank_v")


class LowRankBitLinear(BitLinear):
    """A `BitLinear` with the factors ``low_rank_u`` ``[O, r]`` and ``low_rank_v`` ``[r, I]``, which holds V^T.

    Both have the dtype of the latents, and are what a checkpoint and a packed model store under these names.
    """

    low_rank_u: nn.Parameter
    low_rank_v: nn.Parameter

    @classmethod
    def of(cls, layer: BitLinear, rank: int) -> LowRankBitLinear:
        """Return a layer that takes over everything ``layer`` has, its hooks included, and is still the same function.

        U is zero and V random, as in arXiv 2106.09685, so that one of the two has a gradient from the first step on;
        with both zero neither ever would.

        Raises: InputError for a rank below 1 or above min(O, I), or a layer of another kind.
        """
        if type(layer) is not BitLinear:
            raise InputError(f"low rank: a {type(layer).__name__} cannot take factors, only a plain BitLinear can")
        most = min(layer.out_features, layer.in_features)
        if not 1 <= rank <= most:
            raise InputError(f"low rank: found rank {rank}, a {layer.out_features} x {layer.in_features} layer takes 1 "
                             f"to {most}")  # fmt: skip
        grown = cls.__new__(cls)
        grown.__dict__ = layer.__dict__
        latent = layer.weight
        grown.low_rank_u = nn.Parameter(latent.new_zeros(layer.out_features, rank))
        grown.low_rank_v = nn.Parameter(latent.new_empty(rank, layer.in_features))
        nn.init.kaiming_uniform_(grown.low_rank_v, a=5**0.5)
        return grown

    @property
    def rank(self) -> int:
        return int(self.low_rank_u.shape[1])

    @torch.no_grad()
    def set_factors(self, u: Tensor, v: Tensor) -> None:
        """Give the layer the factors ``u [O, r]`` and ``v [r, I]`` of its own rank."""
        self.low_rank_u.copy_(u)
        self.low_rank_v.copy_(v)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``Q(x) Q(w)^T + b`` and the correction of ``x [..., I]``, to the degree of the model's strength."""
        product = super().forward(x)
        strength = self.strength.value
        if strength == 0.0:
            return product
        inner = F.linear(x, self.low_rank_v.to(x.dtype))
        return product + strength * F.linear(inner, self.low_rank_u.to(x.dtype))


def low_rank_linears(model: nn.Module) -> Iterator[tuple[str, LowRankBitLinear]]:
    """Yield the name and the layer of every `LowRankBitLinear` of ``model``."""
    for name, layer in bit_linears(model):
        if isinstance(layer, LowRankBitLinear):
            yield name, layer


def add_factors(model: nn.Module, ranks: dict[str, int]) -> None:
    """Give the ternary layers of ``model`` named in ``ranks`` factors of that rank, in place.

    Raises: InputError for a name that is no ternary layer, or what `LowRankBitLinear.of` refuses.
    """
    layers = dict(bit_linears(model))
    for name, rank in ranks.items():
        if name not in layers:
            raise InputError(f"low rank: {name} is no ternary layer of the model")
        parent, _, attribute = name.rpartition(".")
        try:
            setattr(model.get_submodule(parent), attribute, LowRankBitLinear.of(layers[name], rank))
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
