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
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.models.forward import soft_capped
from wrinklefree.objectives.base import LogitObjective

# Logits of one chunk, for student or teacher, in float32. Large enough for the matrix product; small enough that the
# allocator reuses the memory (glibc maps anew, page by page, what is over 32 MB: 20 % of the time at 64 MB).
_CHUNK_BYTES = 24 * 1024 * 1024
_NEVER = -1e4


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
    """States [N, D] of the predicting tokens, their targets [N], and the heads that turn states into logits.

    ``dtype``: of the student's matrix products when it is not the weight's own (mixed precision).
    ``weights`` float32 [N]: handed to the objectives, chunk by chunk, when there are any.
    ``banned``: a token that can never follow (the MASK of diffusion); both models give it probability 0.
    ``softcap``, ``teacher_softcap``: of the models' logits (`models.forward.soft_capped`).
    """

    states: Tensor
    head: nn.Module
    targets: Tensor
    teacher_states: Tensor | None = None
    teacher_head: nn.Module | None = None
    dtype: torch.dtype | None = None
    weights: Tensor | None = None
    banned: int | None = None
    softcap: float | None = None
    teacher_softcap: float | None = None


def chunk_tokens(vocabulary: int) -> int:
    """Return how many tokens one chunk has."""
    return max(16, _CHUNK_BYTES // (4 * vocabulary))


def head_pass(
    inputs: HeadInputs, terms: Sequence[HeadTerm], tokens_per_chunk: int | None = None
) -> tuple[Tensor, HeadSums]:
    """Return the total, sum of factor * objective (scalar float32, differentiable), and the detached sums.

    Raises: InputError for a head that is not a plain linear layer without bias.
    """
    head = inputs.head
    if type(head) is not nn.Linear or head.bias is not None:
        raise InputError(f"lm_head: found {head}, only a linear layer without bias is supported")
    sums = HeadSums()
    size = tokens_per_chunk or chunk_tokens(head.out_features)
    total = _HeadPass.apply(inputs.states, head.weight, inputs, terms, size, sums)
    return total, sums


def _chunk_total(inputs: HeadInputs, student: Tensor, rows: slice, terms: Sequence[HeadTerm], sums: HeadSums) -> Tensor:
    """Evaluate every objective on a chunk of the student's float32 logits [n, V]; return the weighted total."""
    teacher = None
    if inputs.teacher_states is not None and inputs.teacher_head is not None:
        with torch.no_grad():
            logits = soft_capped(inputs.teacher_head(inputs.teacher_states[rows]).float(), inputs.teacher_softcap)
            teacher = _without(inputs.banned, logits)
    if inputs.softcap is not None:
        student = _without(inputs.banned, soft_capped(student, inputs.softcap))
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    for term in terms:
        with torch.set_grad_enabled(torch.is_grad_enabled() and term.factor != 0.0):
            given = () if inputs.weights is None else (inputs.weights[rows],)
            value, metrics = term.objective.chunk(student, teacher, inputs.targets[rows], *given)
        sums.add(term.name, value, metrics)
        if term.factor != 0.0:
            total = total + term.factor * value
    return total


def _without(banned: int | None, logits: Tensor) -> Tensor:
    """Put the banned token's logits, in place, where its probability is 0 in float32 at any usual temperature.

    Finite, because a divergence would compute 0 times (-inf + inf) otherwise.
    """
    if banned is not None:
        logits[:, banned] = _NEVER
    return logits


class _HeadPass(torch.autograd.Function):
    """The gradient is taken during the forward, chunk by chunk, and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        inputs: HeadInputs,
        terms: Sequence[HeadTerm],
        size: int,
        sums: HeadSums,
    ) -> Tensor:
        ctx.wants_states, ctx.wants_weight = (
            needed and any(term.factor for term in terms) for needed in ctx.needs_input_grad[:2]
        )
        # Float32 whatever the model's dtype: many chunks' contributions are added up here.
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if ctx.wants_weight else None
        state_gradient = torch.zeros_like(states) if ctx.wants_states else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        narrow = weight.to(inputs.dtype or weight.dtype)  # once, not for each chunk
        for start in range(0, states.shape[0], size):
            rows = slice(start, start + size)
            chunk = states[rows].to(narrow.dtype)
            logits = _without(inputs.banned, F.linear(chunk, narrow).float())
            with torch.set_grad_enabled(ctx.wants_states or ctx.wants_weight):
                logits.requires_grad_(torch.is_grad_enabled())
                value = _chunk_total(inputs, logits, rows, terms, sums)
                gradient = torch.autograd.grad(value, logits)[0] if value.requires_grad else None
            if gradient is not None and inputs.banned is not None:
                gradient[:, inputs.banned] = 0.0  # its logit was not the model's
            total += value.detach()
            if gradient is not None and state_gradient is not None:
                state_gradient[rows] = (gradient.to(narrow.dtype) @ narrow).to(states.dtype)
            if gradient is not None and weight_gradient is not None and narrow.dtype == torch.float32:
                weight_gradient.addmm_(gradient.t(), chunk)
            elif gradient is not None and weight_gradient is not None:
                weight_gradient += gradient.to(narrow.dtype).t() @ chunk
        ctx.save_for_backward(state_gradient, weight_gradient)
        ctx.dtypes = (states.dtype, weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [
            None if gradient is None else (gradient * upstream[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None)
