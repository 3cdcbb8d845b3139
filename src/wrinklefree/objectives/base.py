"""What an objective is: it names its needs, counts its tokens, and returns a sum over them.

The caller divides by the number of tokens of the whole optimizer step, once, so that neither accumulation nor
padding nor the number of processes can bias a loss.

There are two kinds. A `LogitObjective` sees chunks of logits, which several of them share, so that the vocabulary is
never spread out over a whole batch. A `StateObjective` sees the outputs of the student's and the teacher's forward.

Shapes: B batch, T tokens, N predicted tokens of a batch, n tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wrinklefree.data.batch import IGNORE_INDEX, PREDICTED, TokenBatch
from wrinklefree.models.forward import ForwardOutput
from wrinklefree.teachers.base import TopKOutput, TopKRows

CLEAN = "clean"


@dataclass(frozen=True)
class Needs:
    """What an objective asks of the forwards: names of `models.forward`, a teacher, and its view of the batch.

    Objectives with the same ``view`` share one student forward; ``"clean"`` is the batch as the data gave it, other
    views are made by the manager. ``rows``: which tokens a `LogitObjective` predicts (`TokenBatch.selection`).
    """

    teacher: bool = False
    states: frozenset[str] = frozenset()
    view: str = CLEAN
    rows: str = PREDICTED


@dataclass(frozen=True)
class LossSum:
    """A loss summed over ``count`` tokens (scalar float32), and metrics summed over the same tokens, detached."""

    sum: Tensor
    count: int
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Context:
    """What a `StateObjective` may look at; ``teacher`` is None when nobody needs one.

    ``batch`` and ``student`` are of the objective's view; the teacher has seen the clean batch.
    """

    batch: TokenBatch
    student: ForwardOutput
    teacher: ForwardOutput | TopKOutput | None = None

    def taught(self) -> ForwardOutput:
        """Return the teacher's output; its absence is a bug of the caller, not of the user."""
        assert isinstance(self.teacher, ForwardOutput), "an objective that needs a teacher's states has none"
        return self.teacher


class Objective(Protocol):
    """Common to both kinds."""

    @property
    def needs(self) -> Needs:
        """Return what it asks of the forwards."""
        ...

    def count(self, batch: TokenBatch) -> int:
        """Return how many tokens of ``batch``, its own view, the sum runs over, before any forward."""
        ...


@runtime_checkable
class LogitObjective(Objective, Protocol):
    """Works on chunks of logits of the predicted tokens.

    One whose view gives its tokens weights (`Rows.weights`) is given those of the chunk as a fourth argument.
    """

    def chunk(
        self, student: Tensor, teacher: Tensor | TopKRows | None, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum over a chunk, and metric sums; float32 logits [n, V] and int64 targets [n].

        ``teacher``: its logits [n, V], or its most probable tokens when that is all it gives.
        """
        ...


class Logits:
    """Float32 logits [n, V] of some tokens, and what several objectives need of them, each computed once."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._soft: dict[float, tuple[Tensor, Tensor]] = {}
        self._highest: Tensor | None = None

    def highest(self) -> Tensor:
        """Return the highest logit of each token, [n]."""
        if self._highest is None:
            self._highest = self.values.amax(dim=-1)
        return self._highest

    def peak(self) -> tuple[Tensor, Tensor]:
        """Return the highest logit and its token, [n] each; a search that costs as much as a softmax."""
        top = self.values.max(dim=-1)
        return top.values, top.indices

    def probs(self, temperature: float = 1.0) -> Tensor:
        """Return softmax(values / temperature) [n, V]; shared, so not to be written to."""
        return self._softmax(temperature)[0]

    def log_norm(self, temperature: float = 1.0) -> Tensor:
        """Return log sum exp(values / temperature), [n]."""
        return self._softmax(temperature)[1]

    def _softmax(self, temperature: float) -> tuple[Tensor, Tensor]:
        if temperature not in self._soft:
            # Step by step, because torch's softmax keeps neither the maximum nor the sum.
            probs = self.values - self.highest()[:, None]
            if temperature != 1.0:
                probs.mul_(1.0 / temperature)
            total = probs.exp_().sum(dim=-1)
            probs.mul_(total.reciprocal()[:, None])
            self._soft[temperature] = (probs, self.highest() / temperature + total.log())
        return self._soft[temperature]


@runtime_checkable
class AnalyticObjective(LogitObjective, Protocol):
    """A `LogitObjective` that knows its gradient; without graph and copies it costs a fraction of the time."""

    def block(
        self,
        student: Logits,
        teacher: Logits | TopKRows | None,
        targets: Tensor,
        gradient: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what `chunk` returns, and add factor * d sum / d logits to ``gradient`` [n, V] unless it is None."""
        ...


@runtime_checkable
class StateObjective(Objective, Protocol):
    """Works on the outputs of whole forwards."""

    def loss(self, context: Context) -> LossSum:
        """Return the sum over the tokens that `count` counts."""
        ...


def predicted(batch: TokenBatch) -> Tensor:
    """Return bool [B, T-1]: position i predicts token i + 1 of the same document."""
    return batch.labels[:, 1:] != IGNORE_INDEX


def real(batch: TokenBatch) -> Tensor:
    """Return bool [B, T]: the positions that are not padding."""
    return batch.document_ids >= 0


def number(mask: Tensor) -> int:
    """Return how many entries of a bool mask are true."""
    return int(torch.count_nonzero(mask))
