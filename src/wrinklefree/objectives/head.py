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
from wrinklefree.objectives.base import AnalyticObjective, LogitObjective, Logits
from wrinklefree.objectives.fused_head import NEVER, FusedTerms
from wrinklefree.teachers.base import TopKRows

# Logits of one chunk, for student or teacher, in float32. Large enough for the matrix product; small enough that the
# allocator reuses the memory (glibc maps anew, page by page, what is over 32 MB: 20 % of the time at 64 MB).
_CHUNK_BYTES = 24 * 1024 * 1024
_BLOCK_BYTES = 512 * 1024


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

    The teacher is given by states and head, or by the most probable tokens that it gives itself.

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
    teacher_top: TopKRows | None = None
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
    fused = FusedTerms.of(inputs, terms, inputs.dtype or head.weight.dtype)
    size = tokens_per_chunk or (fused.chunk_tokens if fused else chunk_tokens)(head.out_features)
    total = _HeadPass.apply(inputs.states, head.weight, inputs, terms, size, sums, fused)
    return total, sums


def frozen_head(head: nn.Module, dtype: torch.dtype | None) -> nn.Linear:
    """Return a plain linear layer with the head's weight in ``dtype``, through which no gradient goes.

    ``dtype`` None keeps the weight's own.
    """
    assert isinstance(head, nn.Linear)
    frozen = nn.Linear(head.in_features, head.out_features, bias=False, device="meta")
    frozen.weight = nn.Parameter(head.weight.detach().to(dtype or head.weight.dtype), requires_grad=False)
    return frozen


def _without(banned: int | None, logits: Tensor) -> Tensor:
    """Put the banned token's logits, in place, where its probability is 0 in float32 at any usual temperature.

    Finite, because a divergence would compute 0 times (-inf + inf) otherwise.
    """
    if banned is not None:
        logits[:, banned] = NEVER
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
        fused: FusedTerms | None,
    ) -> Tensor:
        ctx.wants_states, ctx.wants_weight = (
            needed and any(term.factor for term in terms) for needed in ctx.needs_input_grad[:2]
        )
        # Float32 whatever the model's dtype: many chunks' contributions are added up here.
        weight_gradient: Tensor | None = None
        state_gradient = torch.zeros_like(states) if ctx.wants_states else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        narrow = weight.to(inputs.dtype or weight.dtype)  # once, not for each chunk
        # A batch without a token to predict has one empty chunk: every process must report the same names.
        for start in range(0, max(states.shape[0], 1), size):
            rows = slice(start, start + size)
            chunk = states[rows].to(narrow.dtype)
            logits, wanted = F.linear(chunk, narrow), ctx.wants_states or ctx.wants_weight
            if fused is not None:
                value, gradient = fused.chunk(inputs, logits, rows, sums, wanted)
            else:
                logits = _without(inputs.banned, soft_capped(logits.float(), inputs.softcap))
                value, gradient = _chunk_loss(inputs, logits, rows, terms, sums, wanted)
            total += value
            if gradient is not None and state_gradient is not None:
                state_gradient[rows] = (gradient.to(narrow.dtype) @ narrow).to(states.dtype)
            if gradient is not None and ctx.wants_weight:
                weight_gradient = _added(weight_gradient, gradient.to(narrow.dtype).t(), chunk)
            del logits, gradient  # before the next chunk's are made
        if ctx.wants_weight and weight_gradient is None:  # no token to predict
            weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        ctx.save_for_backward(state_gradient, weight_gradient)
        ctx.dtypes = (states.dtype, weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # On a CPU it costs nothing to look, and the weight's gradient is large.
        as_it_is = upstream[0].device.type == "cpu" and float(upstream[0]) == 1.0
        scaled = [
            None if gradient is None else (gradient if as_it_is else gradient * upstream[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None)


def _added(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """Return total + left @ right, in float32, in place; None is 0 (and costs no pass over it)."""
    if total is None:
        return (left @ right).float()
    return total.addmm_(left, right) if left.dtype == torch.float32 else total.add_(left @ right)


def _chunk_loss(
    inputs: HeadInputs, student: Tensor, rows: slice, terms: Sequence[HeadTerm], sums: HeadSums, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Evaluate every objective on float32 logits [n, V]; return the weighted total and its gradient [n, V]."""
    teacher, targets = _teacher_rows(inputs, rows), inputs.targets[rows]
    weights = None if inputs.weights is None else inputs.weights[rows]
    analytic = [term for term in terms if isinstance(term.objective, AnalyticObjective) and weights is None]
    others = [term for term in terms if term not in analytic]
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    gradient = torch.empty_like(student) if wanted and any(term.factor for term in analytic) else None
    block = _block_tokens(student)
    for start in range(0, max(len(student), 1) if analytic else 0, block):
        total += _analytic(student, teacher, targets, slice(start, start + block), analytic, gradient, sums)
    if others:
        with torch.set_grad_enabled(wanted and any(term.factor for term in others)):
            leaf = student.detach().requires_grad_(torch.is_grad_enabled())
            value = _autograd(leaf, teacher, targets, weights, others, sums)
            if value.requires_grad:
                (own,) = torch.autograd.grad(value, leaf)
                gradient = own if gradient is None else gradient.add_(own)
            total += value.detach()
    if gradient is not None and inputs.softcap is not None:
        gradient.mul_(1.0 - (student / inputs.softcap).square())  # d c tanh(z / c) / dz
    if gradient is not None and inputs.banned is not None:
        gradient[:, inputs.banned] = 0.0  # its logit was not the model's
    return total, gradient


def _teacher_rows(inputs: HeadInputs, rows: slice) -> Tensor | TopKRows | None:
    if inputs.teacher_top is not None:
        top = inputs.teacher_top[rows]
        if inputs.banned is None:
            return top
        return TopKRows(top.ids, top.log_probs.masked_fill(top.ids == inputs.banned, NEVER))
    if inputs.teacher_states is None or inputs.teacher_head is None:
        return None
    with torch.no_grad():
        logits = inputs.teacher_head(inputs.teacher_states[rows]).float()
        return _without(inputs.banned, soft_capped(logits, inputs.teacher_softcap))


def _analytic(
    student: Tensor,
    teacher: Tensor | TopKRows | None,
    targets: Tensor,
    rows: slice,
    terms: Sequence[HeadTerm],
    gradient: Tensor | None,
    sums: HeadSums,
) -> Tensor:
    """A few rows at a time, so that the passes over them meet in the processor's cache."""
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    if gradient is not None:
        gradient[rows].zero_()
    ours = Logits(student[rows])
    theirs = Logits(teacher[rows]) if isinstance(teacher, Tensor) else teacher[rows] if teacher is not None else None
    for term in terms:
        assert isinstance(term.objective, AnalyticObjective)
        into = gradient[rows] if gradient is not None and term.factor else None
        value, metrics = term.objective.block(ours, theirs, targets[rows], into, term.factor)
        sums.add(term.name, value, metrics)
        total += term.factor * value
    return total


def _autograd(
    student: Tensor,
    teacher: Tensor | TopKRows | None,
    targets: Tensor,
    weights: Tensor | None,
    terms: Sequence[HeadTerm],
    sums: HeadSums,
) -> Tensor:
    total = torch.zeros((), dtype=torch.float32, device=student.device)
    for term in terms:
        with torch.set_grad_enabled(torch.is_grad_enabled() and term.factor != 0.0):
            value, metrics = term.objective.chunk(student, teacher, targets, *(() if weights is None else (weights,)))
        sums.add(term.name, value, metrics)
        if term.factor != 0.0:
            total = total + term.factor * value
    return total


def _block_tokens(logits: Tensor) -> int:
    """Rows of one block: on a CPU what its second-level cache holds beside five copies, elsewhere the whole chunk."""
    return max(1, _BLOCK_BYTES // (4 * logits.shape[1])) if logits.device.type == "cpu" else len(logits)
