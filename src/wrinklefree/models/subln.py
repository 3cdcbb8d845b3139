"""SubLN: an RMSNorm right before ``o_proj`` and ``down_proj``, so that the quantised product sees unit-variance input.

The norms are children with the names Hugging Face's BitNet uses (``self_attn.attn_sub_norm``, ``mlp.ffn_sub_norm``);
a pre-hook of the projection applies them, so no parameter changes its name.

Source: arXiv 2510.13998, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrinklefree.models.families import Family

# Relative change of a norm's output that `fit_identity` allows, root mean square over tokens weighted by their length.
IDENTITY_TOLERANCE = 0.01
SublnInit = Literal["identity", "ones", "none"]
SUBLN_INITS: tuple[SublnInit, ...] = ("identity", "ones", "none")


class SubLayerNorm(nn.Module):
    """RMSNorm: ``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in float32.

    ``eps`` ``[1]`` is in the checkpoint, because `fit_identity` chooses it for each norm.
    """

    eps: Tensor

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))
        self.register_buffer("eps", torch.tensor([eps], dtype=torch.float32))

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


def insert_layer_norms(layer: nn.Module, family: Family, eps: float, exclude: Sequence[str] = ()) -> list[SubLayerNorm]:
    """Insert the two norms, with gains of one, into one decoder layer, in place, and return them.

    A linear whose name in the layer is in ``exclude`` is not quantised and gets none.
    """
    norms = []
    for owner, name, linear_name in (
        ("self_attn", "attn_sub_norm", family.attention_norm_before),
        ("mlp", "ffn_sub_norm", family.ffn_norm_before),
    ):
        if f"{owner}.{linear_name}" in exclude:
            continue
        parent = layer.get_submodule(owner)
        linear = parent.get_submodule(linear_name)
        assert isinstance(linear, nn.Linear)
        norm = SubLayerNorm(linear.in_features, eps, linear.weight.dtype)
        parent.add_module(name, norm)
        linear.register_forward_pre_hook(_NormInput(norm))
        norms.append(norm)
    return norms


def adopt_layer_norms(layer: nn.Module) -> None:
    """Make the two norms of an architecture that has them ours, in place: same gains and epsilon, same function."""
    for owner, name in (("self_attn", "attn_sub_norm"), ("mlp", "ffn_sub_norm")):
        parent = layer.get_submodule(owner)
        theirs: Any = parent.get_submodule(name)
        if isinstance(theirs, SubLayerNorm):
            continue
        norm = SubLayerNorm(theirs.weight.shape[0], float(theirs.variance_epsilon), theirs.weight.dtype)
        norm.weight = theirs.weight
        setattr(parent, name, norm)


@torch.no_grad()
def fit_identity(norms: list[SubLayerNorm], run: Callable[[], object]) -> None:
    """Fit each norm so that it returns its input, nearly, for the tokens that ``run`` sends through it.

    The norms are passed through while measuring, so each sees the inputs of the unchanged model. One gain serves all
    channels, which keeps the direction of every token's vector; what changes is the vectors' length, and the gain with
    the least squared change is fitted. Tokens of very different length (the attention sinks of a pretrained model are
    hundreds of times longer than the rest) cannot all keep theirs under one gain: then epsilon is raised until the
    change is at most ``IDENTITY_TOLERANCE``, which makes the norm linear for short tokens and normalising for long
    ones.

    Differs: arXiv 2510.13998 starts from gains of one and lets training repair the function.
    """
    lengths: dict[int, list[Tensor]] = {id(norm): [] for norm in norms}

    def measure(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        lengths[id(norm)].append(inputs[0].double().square().mean(dim=-1).flatten())
        return inputs[0]

    handles = [norm.register_forward_hook(measure) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    for norm in norms:
        gain, eps = _identity(torch.cat(lengths[id(norm)]), float(norm.eps))
        norm.weight.fill_(gain)
        norm.eps.fill_(eps)


def _identity(mean_squares: Tensor, eps: float) -> tuple[float, float]:
    """Return gain and epsilon for tokens of these mean squares [N]: the smallest epsilon within the tolerance."""
    if not float(mean_squares.sum()):
        return 1.0, eps  # nothing ever comes through
    while True:
        factor = torch.rsqrt(mean_squares + eps)
        gain = float((mean_squares * factor).sum() / (mean_squares * factor.square()).sum())
        change = float((mean_squares * (gain * factor - 1).square()).sum() / mean_squares.sum())
        if change <= IDENTITY_TOLERANCE**2:
            return gain, eps
        eps = max(4 * eps, 1e-3 * float(mean_squares.mean()))
