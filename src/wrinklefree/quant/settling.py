"""Latents away from the thresholds at which their codes change: what was fitted survives the first steps of training.

Training through the rounding leaves many latents oscillating about a threshold, and a rate that falls to zero freezes
them there. The next optimizer's first steps, all of about the rate's size, then flip those codes at once.

Source: the oscillation is described in arXiv 2203.11086; moving the latents and keeping the codes is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec, expand_scale, round_clip, storable

# In scales: round(w / scale) changes there.
THRESHOLD = 0.5
# A smaller margin than this is lost when latents are rounded to bfloat16, and a code with it.
LEAST = 0.01


def settled(weight: Tensor, scale: Tensor, spec: TernarySpec, margin: float) -> Tensor:
    """Return ``weight [O, I]`` with every |w| at least ``margin`` scales away from half a scale.

    Codes stay as they are, and so do the weights that were far enough. ``scale``: of the shape ``spec.scale_shape``.

    Raises: InputError for a margin that `check_margin` refuses.
    """
    check_margin(margin)
    expanded = expand_scale(storable(scale.detach().float(), spec), spec, weight.shape[1])
    latent = weight.detach().float()
    ratio = latent / expanded
    kept = (ratio.abs() - THRESHOLD).abs() >= margin
    inside = round_clip(latent, expanded) == 0
    moved = torch.where(inside, THRESHOLD - margin, THRESHOLD + margin).copysign(ratio) * expanded
    return torch.where(kept, latent, moved).to(weight.dtype)


@torch.no_grad()
def settle(model: nn.Module, margin: float) -> int:
    """Settle the latents of every layer whose scales are its own; outputs are the same bits at full strength.

    Columns kept in full precision stay. Layers without scales of their own stay, too: absmean scales follow the
    latents. Return how many layers were settled.

    Raises: InputError for a margin that `check_margin` refuses.
    """
    check_margin(margin)
    layers = [linear for _, linear in bit_linears(model) if linear.weight_scale is not None and margin > 0.0]
    for linear in layers:
        assert linear.weight_scale is not None
        moved = settled(linear.weight, linear.weight_scale, linear.spec, margin)
        linear.weight.copy_(
            moved if linear.kept_columns is None else torch.where(linear.kept_columns, linear.weight, moved)
        )
    return len(layers)


def check_margin(margin: float) -> None:
    """Raise InputError for a margin that is neither 0 nor from `LEAST` to `THRESHOLD`."""
    if margin != 0.0 and not LEAST <= margin <= THRESHOLD:
        raise InputError(f"margin: found {margin}, it must be 0, or from {LEAST} to {THRESHOLD} scales")
