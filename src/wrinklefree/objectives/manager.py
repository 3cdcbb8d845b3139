"""Several objectives as one loss: which are active, what the forwards must provide, and what each contributes.

For one micro-batch: every view that an active objective asks for is made once from the clean batch, before the tokens
are counted; the student runs once for each distinct view; the teacher sees the clean batch, and its output is shared;
logit objectives that predict the same tokens share the chunks of `head_pass`. An objective of weight 0 is not counted
and not run, and a view that only it would see is not made, except that ``monitor`` objectives are measured without
gradient.

    loss of the step = sum_i w_i  (sum over all micro-batches and processes of L_i) / (count_i of the whole step)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.data.batch import Rows, TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import ForwardOutput, forward, projections
from wrinklefree.objectives.balance import Balance, BalanceState, embedded_input, gradient_size
from wrinklefree.objectives.base import CLEAN, Context, LogitObjective, Objective, StateObjective
from wrinklefree.objectives.head import HeadInputs, HeadTerm, frozen_head, head_pass
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.teachers.base import TopKOutput

View = Callable[[TokenBatch], TokenBatch]


@dataclass(frozen=True)
class Term:
    """An objective, its weight, and how its weight is found when it is not absolute."""

    objective: Objective
    weight: float = 1.0
    balance: Balance | None = None


@dataclass
class Tally:
    """Detached sums of a step: of each objective and of its metrics, over micro-batches and processes.

    ``gradients``: of a step that measured them, the sizes of the terms' gradients at weight 1 (`balance`).
    ``counts``: tokens of the whole step, as `ObjectiveManager.loss` was given them.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)
    counts: Mapping[str, float] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, metrics: Mapping[str, Tensor]) -> None:
        self.sums[name] = self.sums.get(name, 0) + value.detach()
        kept = self.metrics.setdefault(name, {})
        for key, metric in metrics.items():
            kept[key] = kept.get(key, 0) + metric.detach()

    def reduce(self, all_reduce: Callable[[Tensor], Tensor]) -> None:
        """Replace every sum by its sum over processes."""
        self.sums = {name: all_reduce(value) for name, value in self.sums.items()}
        self.metrics = {n: {k: all_reduce(v) for k, v in kept.items()} for n, kept in self.metrics.items()}
        self.gradients = {name: all_reduce(value) for name, value in self.gradients.items()}


class ObjectiveManager:
    """Holds the objectives by name, how their views are made, and the state of balanced weights.

    ``views``: by name, from the clean batch; what a view draws at random must follow from the batch alone, so that a
    resumed run draws it again. ``banned``: a token that no objective may find probable (`HeadInputs.banned`).
    """

    def __init__(
        self,
        terms: Mapping[str, Term],
        monitor: tuple[str, ...] = ("next_token",),
        tokens_per_chunk: int | None = None,
        views: Mapping[str, View] | None = None,
        banned: int | None = None,
        gradient_share_every: int | None = None,
    ) -> None:
        # A hidden-state loss can fall while the model forgets how to predict: the cross-entropy is always measured.
        if "next_token" in monitor and "next_token" not in terms:
            terms = {**terms, "next_token": Term(NextToken(), weight=0.0)}
        for name, term in terms.items():
            if term.weight < 0.0:
                raise InputError(f"objectives.{name}.weight: found {term.weight}, it must not be negative")
            if term.balance and term.balance.kind == "gradient" and not projections(term.objective.needs.states):
                raise InputError(
                    f"objectives.{name}.balance.kind=gradient: is measured at projections, which this objective does "
                    "not read; use kind=share"
                )
            view = term.objective.needs.view
            if view != CLEAN and view not in (views or {}):
                raise InputError(f"objectives.{name}: nobody makes the {view!r} view of the batch that it works on")
        self.terms = dict(terms)
        self.monitor = tuple(name for name in monitor if name in self.terms)
        self.tokens_per_chunk = tokens_per_chunk
        self.views = dict(views or {})
        self.banned = banned
        # Views that were made for counting and wait for their loss, by the identity of the (kept) clean batch.
        self._made: dict[int, tuple[TokenBatch, dict[str, TokenBatch]]] = {}
        self.balance = BalanceState(
            {name: term.balance for name, term in terms.items() if term.balance}, gradient_share_every
        )

    @property
    def base_weights(self) -> dict[str, float]:
        """Return the weights the objectives came with."""
        return {name: term.weight for name, term in self.terms.items()}

    @property
    def taught(self) -> tuple[str, ...]:
        """Return the names of the objectives that need a teacher."""
        return tuple(name for name, term in self.terms.items() if term.objective.needs.teacher)

    def active(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Return the weights above 0; a name that is missing has weight 0."""
        return {name: weights[name] for name in self.terms if weights.get(name, 0.0) > 0.0}

    def needs_teacher(self, weights: Mapping[str, float]) -> bool:
        """Return whether an active objective needs a teacher."""
        return any(name in self.taught for name in self.active(weights))

    def teacher_wants(self, weights: Mapping[str, float]) -> frozenset[str]:
        """Return what the teacher's forward must keep for the active objectives."""
        names = [name for name in self.active(weights) if name in self.taught]
        return frozenset[str]().union(*(self.terms[name].objective.needs.states for name in names))

    def counts(self, batch: TokenBatch, weights: Mapping[str, float], monitor: bool = False) -> dict[str, int]:
        """Return the tokens that each objective to be run counts in its view of ``batch``."""
        objectives = {name: self.terms[name].objective for name in self._names(weights, monitor)}
        return {name: each.count(self._view(each.needs.view, batch)) for name, each in objectives.items()}

    def loss(
        self,
        student: nn.Module,
        batch: TokenBatch,
        weights: Mapping[str, float],
        counts: Mapping[str, float],
        teacher: ForwardOutput | TopKOutput | None,
        tally: Tally,
        monitor: bool = False,
    ) -> Tensor:
        """Return this micro-batch's part of the step's loss (scalar float32) and add the sums to ``tally``.

        ``counts``: tokens of the whole step, all micro-batches and processes, for each objective.

        Raises: InputError when no objective is active.
        """
        active = self.active(weights)
        if not active:
            raise InputError("objectives: every weight is 0 at this point of training; there is nothing to learn")
        factors = {name: weights[name] * self.balance.factor(name) / max(counts[name], 1) for name in active}
        names = self._names(weights, monitor)
        tally.counts = counts
        total = torch.zeros((), dtype=torch.float32, device=batch.input_ids.device)
        for view in dict.fromkeys(self.terms[name].objective.needs.view for name in names):
            members = [name for name in names if self.terms[name].objective.needs.view == view]
            # A view on which objectives are only measured keeps nothing for a backward.
            with torch.set_grad_enabled(torch.is_grad_enabled() and any(name in active for name in members)):
                part = self._view_loss(student, self._view(view, batch), members, factors, teacher, tally)
            total = total + part
        self._made.pop(id(batch), None)
        return total

    def _view_loss(
        self,
        student: nn.Module,
        seen: TokenBatch,
        names: list[str],
        factors: dict[str, float],
        teacher: ForwardOutput | TopKOutput | None,
        tally: Tally,
    ) -> Tensor:
        objectives = {name: self.terms[name].objective for name in names}
        wants = frozenset[str]().union(*(objective.needs.states for objective in objectives.values()))
        measured = [name for name in names if name in factors and name not in tally.gradients]
        if not (self.balance.shares_due() and torch.is_grad_enabled()):
            measured = []
        with embedded_input(student) if measured else nullcontext(list[Tensor]()) as inputs:
            output = forward(student, seen, wants)
        kind = seen.input_ids.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        # Losses are float32 also in mixed precision; only the head's large products follow it.
        with torch.autocast(kind, enabled=False):
            for name in measured:
                tally.gradients[name] = self._gradient(name, seen, output, inputs, teacher, dtype)
            return self._losses(seen, output, objectives, factors, teacher, tally, dtype)

    def _gradient(
        self,
        name: str,
        batch: TokenBatch,
        output: ForwardOutput,
        inputs: list[Tensor],
        teacher: ForwardOutput | TopKOutput | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Return the size of the gradient of one term's mean, at weight 1, at the embedded input."""
        objective = self.terms[name].objective
        factors = {name: 1.0 / max(objective.count(batch), 1)}
        loss = self._losses(batch, output, {name: objective}, factors, teacher, Tally(), dtype)
        return gradient_size(loss, inputs)

    def _losses(
        self,
        batch: TokenBatch,
        output: ForwardOutput,
        objectives: dict[str, Objective],
        factors: dict[str, float],
        teacher: ForwardOutput | TopKOutput | None,
        tally: Tally,
        dtype: torch.dtype | None,
    ) -> Tensor:
        parts: dict[str, Tensor] = {}
        on_logits: dict[str, list[HeadTerm]] = {}
        for name, objective in objectives.items():
            if isinstance(objective, LogitObjective):
                term = HeadTerm(name, objective, factors.get(name, 0.0))
                on_logits.setdefault(objective.needs.rows, []).append(term)
        for rows, terms in on_logits.items():
            parts[f"logits of {rows}"] = self._logit_loss(output, batch.selection(rows), terms, teacher, tally, dtype)
        for name, objective in objectives.items():
            if isinstance(objective, StateObjective):
                result = objective.loss(Context(batch, output, teacher))
                tally.add(name, result.sum, result.metrics)
                parts[name] = factors.get(name, 0.0) * result.sum
                others = [part for other, part in parts.items() if other != name]
                if name in self.balance.due("gradient") and others and torch.is_grad_enabled():
                    states = [state for layer in output.projections.values() for state in layer]
                    # Over the step's tokens, as the others are: else accumulation would divide the factor.
                    own = gradient_size(result.sum / max(tally.counts[name], 1), states)
                    self.balance.record(name, gradient_size(torch.stack(others).sum(), states), own)
        return torch.stack(list(parts.values())).sum()

    def _logit_loss(
        self,
        output: ForwardOutput,
        rows: Rows,
        terms: list[HeadTerm],
        teacher: ForwardOutput | TopKOutput | None,
        tally: Tally,
        dtype: torch.dtype | None,
    ) -> Tensor:
        taught = teacher if any(term.name in self.taught for term in terms) else None
        theirs = rows.states if rows.teacher is None else rows.teacher
        if rows.own:
            head = frozen_head(output.head, dtype)
            taught = replace(output, final=output.final.detach().to(head.weight.dtype), head=head)
        inputs = HeadInputs(
            states=output.final.flatten(0, 1)[rows.states],
            head=output.head,
            targets=rows.targets,
            teacher_states=taught.final.flatten(0, 1)[theirs] if isinstance(taught, ForwardOutput) else None,
            teacher_head=taught.head if isinstance(taught, ForwardOutput) else None,
            teacher_top=taught.at(theirs) if isinstance(taught, TopKOutput) else None,
            dtype=dtype,
            weights=rows.weights,
            banned=self.banned,
            softcap=output.softcap,
            teacher_softcap=taught.softcap if isinstance(taught, ForwardOutput) else None,
        )
        total, sums = head_pass(inputs, terms, self.tokens_per_chunk)
        for term in terms:
            if term.name in sums.sums:
                tally.add(term.name, sums.sums[term.name], sums.metrics[term.name])
        return total

    def end_step(
        self,
        tally: Tally,
        counts: Mapping[str, float],
        weights: Mapping[str, float],
        all_reduce: Callable[[Tensor], Tensor],
    ) -> None:
        """Put the balanced factors that this step measured into force; ``tally`` is reduced already."""
        self._made.clear()
        for name in self.balance.due("loss"):
            others = [
                weights.get(other, 0.0) * self.balance.factor(other) * value / max(counts[other], 1)
                for other, value in tally.sums.items()
                if other != name
            ]
            if name in tally.sums and others:
                own = tally.sums[name] / max(counts[name], 1)
                # Summed over processes by `commit`, which leaves their ratio as it is.
                self.balance.record(name, torch.stack(others).sum(), own)
        if tally.gradients:
            self.balance.hold_shares({name: float(size) for name, size in tally.gradients.items()}, weights)
        self.balance.commit(all_reduce)

    def report(self, tally: Tally, counts: Mapping[str, float], weights: Mapping[str, float]) -> dict[str, float]:
        """Return the figures of a step: the loss, and for each objective value, metrics, weight, weighted share."""
        values = {name: float(value) / max(counts[name], 1) for name, value in tally.sums.items()}
        weighted = {name: weights.get(name, 0.0) * self.balance.factor(name) * value for name, value in values.items()}
        size = sum(abs(value) for value in weighted.values())
        steep = {n: weights[n] * self.balance.factor(n) * float(size) for n, size in tally.gradients.items()}
        figures = {"loss": sum(weighted.values())}
        for name, value in values.items():
            figures[f"{name}/value"] = value
            figures[f"{name}/weight"] = weights.get(name, 0.0) * self.balance.factor(name)
            figures[f"{name}/share"] = abs(weighted[name]) / size if size else 0.0
            for key, metric in tally.metrics[name].items():
                figures[f"{name}/{key}"] = float(metric) / max(counts[name], 1)
        if sum(steep.values()) > 0.0:
            figures |= {f"{name}/gradient_share": size / sum(steep.values()) for name, size in steep.items()}
        return figures

    def _names(self, weights: Mapping[str, float], monitor: bool) -> list[str]:
        active = self.active(weights)
        extra = [name for name in self.monitor if monitor and name not in active]
        return [*active, *extra]

    def _view(self, name: str, batch: TokenBatch) -> TokenBatch:
        """Return that view of the clean batch, made once however often it is asked for."""
        if name == CLEAN:
            return batch
        _, made = self._made.setdefault(id(batch), (batch, {}))
        if name not in made:
            made[name] = self.views[name](batch)
        return made[name]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"balance": self.balance.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.balance.load_state_dict(state["balance"])
