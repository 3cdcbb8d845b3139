"""Latents away from the thresholds at which their codes change: what was fitted survives the first steps of training.

Training through the rounding leaves many latents oscillating about a threshold, and a rate that falls to zero freezes
them there. The next optimizer's first steps, all of about the rate's size, then flip those codes at once.

Source: the oscillation is described in arXiv 2203.11086; moving the latents and keeping the codes is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wrinklefree.quant.ternary import TernarySpec, expand_scale, round_clip, storable

# In scales: round(w / scale) changes there.
THRESHOLD = 0.5


def settled(weight: Tensor, scale: Tensor, spec: TernarySpec, margin: float) -> Tensor:
    """Return ``weight [O, I]`` with every |w| at least ``margin`` scales away from half a scale.

    Codes stay as they are, and so do the weights that were far enough. ``scale``: of the shape ``spec.scale_shape``.
    A margin above `THRESHOLD` counts as that.
    """
    near = min(margin, THRESHOLD)
    expanded = expand_scale(storable(scale.detach().float(), spec), spec, weight.shape[1])
    latent = weight.detach().float()
    ratio = latent / expanded
    kept = (ratio.abs() - THRESHOLD).abs() >= near
    inside = round_clip(latent, expanded) == 0
    moved = torch.where(inside, THRESHOLD - near, THRESHOLD + near).copysign(ratio) * expanded
    return torch.where(kept, latent, moved).to(weight.dtype)
