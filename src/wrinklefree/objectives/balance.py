"""Weights relative to the other objectives, for terms whose natural scale says nothing.

The attention-relation loss is the case: with the weight its paper states, an independent reproduction measured a
gradient 221 times that of the cross-entropy. So its factor can be set such that at weight 1

- ``gradient``: its gradient, at the states it reads, is ``target`` times that of all other objectives together;
- ``loss``: its value is ``target`` times the sum of the other weighted values.

It is measured every ``every`` steps and used from the next step on; before the first measurement the factor is 0.
The factors are part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from wrinklefree.errors import InputError, unknown_name

_KINDS = ("gradient", "loss")
_TINY = 1e-20


@dataclass(frozen=True)
class Balance:
    """How to find a factor; see the module."""

    kind: Literal["gradient", "loss"] = "gradient"
    target: float = 0.35
    every: int = 50

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise unknown_name("balance.kind", self.kind, _KINDS)
        if not self.target > 0.0 or self.every < 1:
            raise InputError("balance: target must be above 0 and every at least 1")


class BalanceState:
    """The factors in force, and when they are due again."""

    def __init__(self, rules: Mapping[str, Balance]) -> None:
        self.rules = dict(rules)
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
        self._pending.clear()

    def state_dict(self) -> dict[str, Any]:
        return {"factor": dict(self._factor), "wait": dict(self._wait)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._factor.update({name: float(state["factor"][name]) for name in self.rules})
        self._wait.update({name: int(state["wait"][name]) for name in self.rules})


def gradient_size(loss: Tensor, states: list[Tensor]) -> Tensor:
    """Return the l2 norm of the gradient of ``loss`` with respect to ``states``, leaving the graph in place."""
    gradients = torch.autograd.grad(loss, states, retain_graph=True, allow_unused=True)
    squares = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
