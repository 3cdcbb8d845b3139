"""APOLLO: the size of AdamW's update from a low-rank copy of the gradient, its direction from the gradient itself.

For a matrix whose gradient G, turned so that it is wide, is m x n (m <= n), with rank r:

    R = P G                      P is r x m, drawn from N(0, 1/r); a new one every ``update_every`` steps
    M <- b1 M + (1 - b1) R,  V <- b2 V + (1 - b2) R^2                              (Adam's moments of R alone)
    R~ = (M / (1 - b1^t)) / (sqrt(V / (1 - b2^t)) + eps)
    s_j = |R~[:, j]| / |R[:, j]|   for each channel j (APOLLO),  or   s = |R~| / |R|   for the matrix (Mini, r = 1)
    U = sqrt(scale) G diag(s),  shortened to limiter * |U of the step before| when it is longer     (norm growth)
    W <- W - lr wd W - lr U

R~ has r entries of size one in each channel where Adam's update has m, so U is sqrt(r / m) times as long as Adam's
update: one half at APOLLO's r = m / 4. Mini's ``scale`` of 128 makes up for that, up to m = 128.

State of a matrix: 2 r n float32 numbers, and three scalars. The projections are drawn anew from a seed, so they are
not in a checkpoint; while training they are kept, r m numbers in each matrix.

Source: arXiv 2412.05270, algorithm 1 and section 4; written from the equations. Differs: `docs/objectives.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A matrix's seed is the optimizer's times this plus the matrix's number; the interval is added in the low bits.
_SEEDS_APART = 1_000_003
_INTERVAL_BITS = 24

# (rank, size of the short side, seed) -> projection [r, m], float32 on the CPU.
Projection = Callable[[int, int, int], Tensor]


def gaussian_projection(rank: int, size: int, seed: int) -> Tensor:
    """Return P float32 [rank, size] with entries from N(0, 1 / rank); the same for the same seed on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, size, generator=generator) / rank**0.5


class Apollo(torch.optim.Optimizer):
    """APOLLO for two-dimensional parameters; with ``per_channel`` False and ``rank`` 1, APOLLO-Mini.

    ``rank`` None is a quarter of a matrix's short side. Everything is computed in float32.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        rank: int | None = None,
        per_channel: bool = True,
        scale: float = 1.0,
        update_every: int = 200,
        limiter: float = 1.01,
        seed: int = 0,
        projection: Projection = gaussian_projection,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "rank": rank, "scale": scale,
            "per_channel": per_channel, "update_every": update_every, "limiter": limiter,
        }  # fmt: skip
        super().__init__(params, defaults)
        self._seed, self._projection = seed, projection
        # Of each matrix: the seed its present projection was drawn from, and the projection.
        self._kept: dict[Tensor, tuple[int, Tensor]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group, number)
                number += 1
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        tall = gradient.shape[0] > gradient.shape[1]
        wide = (gradient.T if tall else gradient).float()
        state = self._state(parameter, wide, group, number)
        state["step"] += 1
        step, (beta1, beta2) = state["step"], group["betas"]
        small = self._project(parameter, wide, state, group)
        state["exp_avg"].lerp_(small, 1 - beta1)
        state["exp_avg_sq"].lerp_(small.square(), 1 - beta2)
        denominator = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
        adapted = (state["exp_avg"] / (1 - beta1**step)).div_(denominator)
        update = wide * _ratio(adapted, small, group["per_channel"]) * group["scale"] ** 0.5
        update = _limited(update, state["norm"], group["limiter"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_((update.T if tall else update).to(parameter.dtype), alpha=-group["lr"])

    def _state(self, parameter: Tensor, wide: Tensor, group: dict[str, Any], number: int) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            shape = (_rank(wide, group["rank"]), wide.shape[1])
            state["step"], state["seed"] = 0, self._seed * _SEEDS_APART + number
            state["exp_avg"], state["exp_avg_sq"] = wide.new_zeros(shape), wide.new_zeros(shape)
            state["norm"] = wide.new_zeros(())
        return state

    def _project(self, parameter: Tensor, wide: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
        """Return R = P G [r, n]; P is drawn when its interval begins, or when a run is resumed inside of it."""
        interval = (state["step"] - 1) // group["update_every"]
        seed = (state["seed"] << _INTERVAL_BITS) + interval
        kept = self._kept.get(parameter)
        if kept is None or kept[0] != seed:
            drawn = self._projection(state["exp_avg"].shape[0], wide.shape[0], seed)
            kept = self._kept[parameter] = (seed, drawn.to(wide.device))
        return kept[1] @ wide


def _rank(wide: Tensor, rank: int | None) -> int:
    return max(1, wide.shape[0] // 4) if rank is None else min(rank, wide.shape[0])


def _ratio(adapted: Tensor, small: Tensor, per_channel: bool) -> Tensor:
    """Return s, [n] or []: zero where the gradient is, because there is nothing to scale."""
    if per_channel:
        long, short = adapted.norm(dim=0), small.norm(dim=0)
    else:
        long, short = adapted.norm(), small.norm()
    return torch.where(short > 0, long / short, 0.0)


def _limited(update: Tensor, before: Tensor, limiter: float) -> Tensor:
    """Return ``update``, at most ``limiter`` times as long as ``before`` [] says the last one was; note its length.

    After an update of length zero there is no limit: everything would grow from zero for ever.
    """
    norm = update.norm()
    allowed = limiter * before
    over = (before > 0) & (norm > allowed)
    before.copy_(torch.where(over, allowed, norm))
    return update * torch.where(over, allowed / norm, 1.0)
