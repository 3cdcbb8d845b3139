"""Two optimizers as one: the first for hidden matrices, AdamW for everything else, with one state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class WithAdamW(torch.optim.Optimizer):
    """Two optimizers that share this one's groups and state, so that saving and loading know only one optimizer."""

    def __init__(self, first: torch.optim.Optimizer, adamw: torch.optim.Optimizer | None) -> None:
        self._parts = [first] if adamw is None else [first, adamw]
        self._counts = [len(part.param_groups) for part in self._parts]
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        first = 0
        for part, count in zip(self._parts, self._counts, strict=True):
            part.param_groups = self.param_groups[first : first + count]
            part.state = self.state
            first += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._keep_dtypes(state_dict)
        # Loading replaces the groups and the state of this object; the parts must follow.
        self._share()

    def _keep_dtypes(self, state_dict: dict[str, Any]) -> None:
        """Take float tensors back as they were saved: torch rounds them to the parameter's dtype."""
        for saved, group in zip(state_dict["param_groups"], self.param_groups, strict=True):
            for number, parameter in zip(saved["params"], group["params"], strict=True):
                for key, value in state_dict["state"].get(number, {}).items():
                    if isinstance(value, Tensor) and value.dtype != self.state[parameter][key].dtype:
                        self.state[parameter][key] = value.to(parameter.device, copy=True)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if getattr(self, "_counts", None) and len(self.param_groups) >= sum(self._counts):
            raise NotImplementedError("groups are fixed when the optimizer is built")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._share()
        for part in self._parts:
            part.step()
        return loss
