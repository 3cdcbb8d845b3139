"""SubLN: an RMSNorm right before ``o_proj`` and ``down_proj``, so that the quantised product sees unit-variance input.

The norms are children with the names Hugging Face's BitNet uses (``self_attn.attn_sub_norm``, ``mlp.ffn_sub_norm``);
a pre-hook of the projection applies them, so no parameter changes its name.

Source: arXiv 2510.13998, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrinklefree.models.families import Family

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


def insert_layer_norms(layer: nn.Module, family: Family, eps: float) -> list[SubLayerNorm]:
    """Insert the two norms, with gains of one, into one decoder layer, in place, and return them."""
    norms = []
    for parent, name, linear_name in (
        (layer.get_submodule("self_attn"), "attn_sub_norm", family.attention_norm_before),
        (layer.get_submodule("mlp"), "ffn_sub_norm", family.ffn_norm_before),
    ):
        linear = parent.get_submodule(linear_name)
        assert isinstance(linear, nn.Linear)
        norm = SubLayerNorm(linear.in_features, eps, linear.weight.dtype)
        parent.add_module(name, norm)
        linear.register_forward_pre_hook(_NormInput(norm))
        norms.append(norm)
    return norms


@torch.no_grad()
def fit_identity_gains(norms: list[SubLayerNorm], run: Callable[[], object]) -> None:
    """Set the gains so that each norm, on average over the tokens that ``run`` sends through it, returns its input.

    One gain for all channels keeps the direction of every token's vector; the mean of the tokens' root mean square
    is the gain with the least squared change of their length. The norms are passed through while measuring, so each
    sees the inputs of the unchanged model.
    """
    total = {id(norm): 0.0 for norm in norms}
    tokens = {id(norm): 0 for norm in norms}

    def measure(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        rms = inputs[0].double().square().mean(dim=-1).sqrt()
        total[id(norm)] += float(rms.sum())
        tokens[id(norm)] += rms.numel()
        return inputs[0]

    handles = [norm.register_forward_hook(measure) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        norm.weight.fill_(total[id(norm)] / max(1, tokens[id(norm)]))
