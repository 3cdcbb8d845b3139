"""QK-clip along the steps of a run: watch the logits of a step's forwards, clip after its optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn

from wrinklefree.models.qk_clip import clip_attention, watch_logits
from wrinklefree.train.position import Position


class QkClip:
    """Clips every ``every``-th step; see `models.qk_clip`. Figures: ``qk/max_logit``, ``qk/clipped_heads``.

    The logits are those of the parameters before the optimizer's step, and the parameters after it are scaled, as in
    the paper: what the step itself added to a logit shows at the next one.
    """

    name = "qk_clip"

    def __init__(self, student: nn.Module, threshold: float, alpha: float, every: int) -> None:
        self._watches = watch_logits(student)
        self._threshold, self._alpha, self._every = threshold, alpha, every
        self._clipped = 0

    def before_step(self, position: Position, progress: float) -> None:
        """Watch this step, when it is one of those that are clipped."""
        for watch in self._watches:
            watch.reset(active=(position.step + 1) % self._every == 0)

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Clip, and return what was seen and done."""
        seen = [(watch.attention, watch.maximum) for watch in self._watches if watch.maximum is not None]
        if not seen:
            return {}
        maxima = _over_processes(torch.stack([maximum for _, maximum in seen]))
        clipped = sum(
            clip_attention(attention, maximum, self._threshold, self._alpha)
            for (attention, _), maximum in zip(seen, maxima, strict=True)
        )
        self._clipped += clipped
        for watch in self._watches:
            watch.reset(active=False)
        return {
            "qk/max_logit": float(maxima.max()),
            "qk/clipped_heads": float(clipped),
            "qk/clipped_so_far": float(self._clipped),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"clipped": self._clipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._clipped = int(state["clipped"])


def _over_processes(maxima: Tensor) -> Tensor:
    """Return the maxima [layers, heads] over all processes: each must scale by the same factors."""
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        distributed.all_reduce(maxima, op=distributed.ReduceOp.MAX)
    return maxima
