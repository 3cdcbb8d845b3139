"""SubLN: an RMSNorm right before ``o_proj`` and ``down_proj``, so that the quantised product sees unit-variance input.

The norms are children with the names Hugging Face's BitNet uses (``self_attn.attn_sub_norm``, ``mlp.ffn_sub_norm``);
a pre-hook of the projection applies them, so no parameter changes its name.

Source: arXiv 2510.13998, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrinklefree.models.families import Family, family_of

SublnInit = Literal["identity", "ones", "none"]
SUBLN_INITS: tuple[SublnInit, ...] = ("identity", "ones", "none")


class SubLayerNorm(nn.Module):
    """RMSNorm: ``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class _NormInput:
    """The pre-hook that applies a norm; a class so that a model with it can be copied."""

    def __init__(self, norm: SubLayerNorm) -> None:
        self.norm = norm

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.norm(inputs[0]), *inputs[1:])


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of a Hugging Face causal language model."""
    layers: nn.ModuleList = model.get_submodule("model.layers")  # type: ignore[assignment]
    return layers


def _sites(model: nn.Module, family: Family) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for layer in decoder_layers(model):
        for parent, norm, linear in (
            (layer.self_attn, "attn_sub_norm", family.attention_norm_before),
            (layer.mlp, "ffn_sub_norm", family.ffn_norm_before),
        ):
            yield parent, norm, parent.get_submodule(linear)  # type: ignore[arg-type, union-attr, misc]


def insert_subln(model: nn.Module) -> None:
    """Insert the norms, with gains of one, into every decoder layer of ``model``, in place."""
    family = family_of(model.config)
    eps = float(model.config.rms_norm_eps)  # type: ignore[union-attr, arg-type]
    for parent, name, linear in _sites(model, family):
        norm = SubLayerNorm(linear.in_features, eps, linear.weight.dtype)
        parent.add_module(name, norm)
        linear.register_forward_pre_hook(_NormInput(norm))


@torch.no_grad()
def fit_identity_gains(model: nn.Module, sequences: Tensor) -> None:
    """Set the gains so that each norm, on average over ``sequences`` [N, T] of token ids, returns its input.

    One gain for all channels keeps the direction of every token's vector; the mean of the tokens' root mean square
    is the gain with the least squared change of their length. The norms are passed through while measuring, so each
    sees the inputs of the unchanged model.
    """
    norms = [getattr(parent, name) for parent, name, _ in _sites(model, family_of(model.config))]
    total = {id(norm): torch.zeros((), dtype=torch.float64) for norm in norms}
    count = 0

    def measure(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        total[id(norm)] += inputs[0].double().square().mean(dim=-1).sqrt().sum()
        return inputs[0]

    handles = [norm.register_forward_hook(measure) for norm in norms]
    try:
        for sequence in sequences:
            model(sequence[None])
            count += sequence.numel()
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        norm.weight.fill_(float(total[id(norm)] / count))
