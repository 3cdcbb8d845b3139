"""Weights relative to the other objectives, for terms whose natural scale says nothing.

The attention-relation loss is the case: with the weight its paper states, an independent reproduction measured a
gradient 221 times that of the cross-entropy. So its factor can be set such that at weight 1

- ``gradient``: its gradient, at the states it reads, is ``target`` times that of all other objectives together;
- ``loss``: its value is ``target`` times the sum of the other weighted values;
- ``share``: its gradient at the embedded input is the share ``target`` of the sum of all terms' gradient sizes there.

It is measured every ``every`` steps and used from the next step on; before the first measurement the factor is 0.
The factors are part of the checkpoint.

The embedded input, ``[B, T, D]`` before the first layer, is the one tensor that every term's gradient reaches, whether
it looks at logits, at hidden states of any layer, or at projections. Sizes there are l2 norms of the first micro-batch.
One measurement costs, for each term, a backward pass through the activations of one micro-batch (no gradients of
weights) and, for a term on logits, a head pass of its own: about half a micro-batch's step a term. A share is a share
of the sum of sizes; gradients that cancel or agree do not show in it. With held shares s_i, and U the sum of the sizes
of the terms that are not held, all factors follow at once: f_i = s_i U / ((1 - sum s) g_i), g_i the size at weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError, unknown_name

_KINDS = ("gradient", "loss", "share")
_TINY = 1e-20


@dataclass(frozen=True)
class Balance:
    """How to find a factor; see the module."""

    kind: Literal["gradient", "loss", "share"] = "gradient"
    target: float = 0.35
    every: int = 50

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown_name("balance.kind", self.kind, _KINDS)
        if not self.target > 0.0 or self.every < 1:
            raise InputError("balance: target must be above 0 and every at least 1")
        if self.kind == "share" and self.target >= 1.0:
            raise InputError(f"balance.target: found {self.target}, a share must be below 1")


class BalanceState:
    """The factors in force, and when they are due again.

    ``shares_every``: measure every term's gradient also when no rule asks for it; None does not.
    """

    def __init__(self, rules: Mapping[str, Balance], shares_every: int | None = None) -> None:
        if shares_every is not None and shares_every < 1:
            raise InputError(f"gradient_share_every: found {shares_every}, it must be at least 1")
        if sum(rule.target for rule in rules.values() if rule.kind == "share") >= 1.0:
            raise InputError("balance: the shares that are held add up to 1 or more; nothing is left for the others")
        self.rules = dict(rules)
        self.shares_every = shares_every
        self._shares_wait = 0
        self._factor = {name: 0.0 for name in rules}
        self._wait = {name: 0 for name in rules}
        self._pending: dict[str, Tensor] = {}

    def factor(self, name: str) -> float:
        """Return the factor of an objective; 1 when its weight is absolute."""
        return self._factor.get(name, 1.0)

    def due(self, kind: Literal["gradient", "loss"]) -> list[str]:
        """Return the objectives to measure now: once for each step in which they are due."""
        return [
            name
            for name, rule in self.rules.items()
            if rule.kind == kind and self._wait[name] == 0 and name not in self._pending
        ]

    @property
    def measures_shares(self) -> bool:
        """Return whether any step measures shares of the gradient."""
        return self.shares_every is not None or any(rule.kind == "share" for rule in self.rules.values())

    def shares_due(self) -> bool:
        """Return whether this step measures the gradient of every term at the embedded input."""
        held = any(rule.kind == "share" and self._wait[name] == 0 for name, rule in self.rules.items())
        return held or (self.shares_every is not None and self._shares_wait == 0)

    def hold_shares(self, sizes: Mapping[str, float], weights: Mapping[str, float]) -> None:
        """Put the factors of all held shares into force: gradient sizes at weight 1, and the recipe's weights."""
        held = {name: rule for name, rule in self.rules.items() if rule.kind == "share" and name in sizes}
        free = sum(weights[name] * self.factor(name) * size for name, size in sizes.items() if name not in held)
        whole = free / (1.0 - sum(rule.target for rule in held.values()))
        for name, rule in held.items():
            if free > 0.0 and sizes[name] > _TINY:
                self._factor[name] = rule.target * whole / sizes[name]
                self._wait[name] = rule.every
        self._shares_wait = self.shares_every or 0

    def record(self, name: str, others: Tensor, own: Tensor) -> None:
        """Keep a measurement: the size of the others' loss or gradient, and of this objective's at weight 1."""
        self._pending[name] = torch.stack([others.detach().float(), own.detach().float()])

    def commit(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """At the end of a step, put measurements into force (summed over processes, so that all agree)."""
        for name, rule in self.rules.items():
            if name in self._pending:
                others, own = (float(x) for x in all_reduce(self._pending[name]))
                if others > 0.0 and own > _TINY:
                    self._factor[name] = rule.target * others / own
                    self._wait[name] = rule.every
            self._wait[name] = max(self._wait[name] - 1, 0)
        self._shares_wait = max(self._shares_wait - 1, 0)
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"factor": dict(self._factor), "wait": dict(self._wait), "shares_wait": self._shares_wait}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._factor.update({name: float(state["factor"][name]) for name in self.rules})
        self._wait.update({name: int(state["wait"][name]) for name in self.rules})
        self._shares_wait = int(state["shares_wait"])


@contextmanager
def embedded_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Give a list that holds the embedded input of the forward within, with a gradient also when it is frozen."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        kept.append(output if output.requires_grad else output.requires_grad_())

    handle = model.get_submodule("model.embed_tokens").register_forward_hook(keep)
    try:
        yield kept
    finally:
        handle.remove()


def gradient_size(loss: Tensor, states: list[Tensor]) -> Tensor:
    """Return the l2 norm of the gradient of ``loss`` with respect to ``states``, leaving the graph in place."""
    if not loss.requires_grad:
        return torch.zeros((), device=loss.device)
    gradients = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros((), device=loss.device)
