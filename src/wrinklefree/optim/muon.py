"""Muon, the optimizer of hidden matrices.

For a matrix of A rows and B columns (Keller Jordan's Muon; the learning rate of ``match_rms_adamw`` is
arXiv 2502.16982, equation 4):

    M <- M + (1 - mu) (G - M),   U = G + mu (M - G)                      (Nesterov momentum)
    O = NS(U):  X = U / |U|_F, then ``ns_steps`` times X <- a X + (b S + c S^2) X with S = X X^T
    W <- W - lr wd W - lr r O,   r = sqrt(max(1, A / B))   ("original")  or   0.2 sqrt(max(A, B))  ("match_rms_adamw")

The two r differ by a factor of 0.2 sqrt(B) to 0.2 sqrt(A), about 5 at B = 576, so a learning rate that is right for
one is wrong for the other.

A step costs at most 6 ns_steps A B min(A, B) operations whatever the batch: for the 135M-parameter SmolLM2 1.5 T,
as much as training on 1,800 tokens. That is little beside a batch of 65,000 tokens and doubles the time of one of
2,000, which is why a run on a laptop's CPU is better served by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class CpuMuon(torch.optim.Muon):
    """torch's Muon, which orthogonalises in ``dtype`` where the matrices are on the CPU.

    Differs: torch always uses bfloat16 there, for which a CPU without such instructions (most desktops) takes tens
    of times longer than for float32; one with AMX takes a quarter. On other devices this is torch's own step.
    """

    dtype = torch.float32

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
        step = orthogonalize(direction, group["ns_coefficients"], group["ns_steps"], group["eps"], self.dtype)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * learning_rate_ratio(parameter.shape[0], parameter.shape[1], group["adjust_lr_fn"])
        parameter.add_(step.to(parameter.dtype), alpha=-rate)


def orthogonalize(
    matrix: Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return U' [A, B] in ``dtype``: the singular vectors of ``matrix``, with singular values near one (0.7 to 1.2).

    Source: the quintic Newton-Schulz iteration of Keller Jordan's Muon.
    """
    a, b, c = coefficients
    x = matrix.to(dtype)
    # The short side first: the Gram matrix is then the smaller of the two.
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


def learning_rate_ratio(rows: int, columns: int, scaling: str) -> float:
    """Return r of the module's third line."""
    if scaling == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1.0, rows / columns))


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    """Yield every tensor of an optimizer's state: what it costs in memory beside the parameters."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
