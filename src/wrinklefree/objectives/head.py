"""Apply the language-model head and every logit objective to one chunk of tokens after another.

Logits of a whole batch, ``[N, V]``, would be the largest tensor of a step, and each objective would add its own
copies. So a chunk's logits are made once, shared by all objectives, differentiated at once, and dropped: what
survives is the gradient of the states ``[N, D]`` and of the head's parameters. Nothing is computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.objectives.base import LogitObjective

# Logits of one chunk, for student or teacher, in float32: large enough for the matrix product, small against a model.
_CHUNK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class HeadTerm:
    """A logit objective and the factor of its sum in the total; factor 0 only measures."""

    name: str
    objective: LogitObjective
    factor: float


@dataclass
class HeadSums:
    """Detached sums over all chunks: of each objective, and of its metrics."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, metrics: dict[str, Tensor]) -> None:
        """Add a chunk's figures."""
        self.sums[name] = self.sums.get(name, 0) + value.detach()
        kept = self.metrics.setdefault(name, {})
        for key, metric in metrics.items():
            kept[key] = kept.get(key, 0) + metric.detach()


@dataclass(frozen=True)
class HeadInputs:
    """States [N, D] of the predicting tokens, their targets [N], and the heads that turn states into logits."""

    states: Tensor
    head: nn.Module
    targets: Tensor
    teacher_states: Tensor | None = None
    teacher_head: nn.Module | None = None


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens one chunk has."""
    return max(16, _CHUNK_BYTES // (4 * vocabulary))


def head_pass(
    inputs: HeadInputs, terms: Sequence[HeadTerm], tokens_per_chunk: int | None = None
) -> tuple[Tensor, HeadSums]:
    """Return the total, sum of factor * objective (scalar float32, differentiable), and the detached sums."""
    sums = HeadSums()
    parameters = [parameter for parameter in inputs.head.parameters() if parameter.requires_grad]
    size = tokens_per_chunk or chunk_tokens(int(inputs.head.out_features))  # type: ignore[arg-type]
    total = _HeadPass.apply(inputs.states, inputs, terms, size, sums, *parameters)
    return total, sums


def _chunk_total(inputs: HeadInputs, states: Tensor, rows: slice, terms: Sequence[HeadTerm], sums: HeadSums) -> Tensor:
    student = inputs.head(states).float()
    teacher = None
    if inputs.teacher_states is not None and inputs.teacher_head is not None:
        with torch.no_grad():
            teacher = inputs.teacher_head(inputs.teacher_states[rows]).float()
    total = torch.zeros((), dtype=torch.float32, device=states.device)
    for term in terms:
        with torch.set_grad_enabled(torch.is_grad_enabled() and term.factor != 0.0):
            value, metrics = term.objective.chunk(student, teacher, inputs.targets[rows])
        sums.add(term.name, value, metrics)
        if term.factor != 0.0:
            total = total + term.factor * value
    return total


class _HeadPass(torch.autograd.Function):
    """The gradient is taken during the forward, chunk by chunk, and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        inputs: HeadInputs,
        terms: Sequence[HeadTerm],
        size: int,
        sums: HeadSums,
        *parameters: Tensor,
    ) -> Tensor:
        # Float32 whatever the model's dtype: thousands of chunks' contributions are added up here.
        parameter_gradients = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters]
        state_gradient = torch.zeros_like(states)
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        wanted = any(ctx.needs_input_grad) and any(term.factor for term in terms)
        for start in range(0, states.shape[0], size):
            rows = slice(start, start + size)
            with torch.set_grad_enabled(wanted):
                chunk = states[rows].detach().requires_grad_(wanted)
                value = _chunk_total(inputs, chunk, rows, terms, sums)
            if wanted:
                gradients = torch.autograd.grad(value, [chunk, *parameters])
                state_gradient[rows] = gradients[0]
                for kept, gradient in zip(parameter_gradients, gradients[1:], strict=True):
                    kept += gradient
            total += value.detach()
        ctx.save_for_backward(state_gradient, *parameter_gradients)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        state_gradient, *parameter_gradients = ctx.saved_tensors
        scaled = [
            (gradient * upstream[0]).to(dtype) for gradient, dtype in zip(parameter_gradients, ctx.dtypes, strict=True)
        ]
        return (state_gradient * upstream[0].to(state_gradient.dtype), None, None, None, None, *scaled)
