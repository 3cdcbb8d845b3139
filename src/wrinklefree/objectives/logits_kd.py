"""Distillation of the teacher's next-token distribution, in float32.

With p = softmax(z_T / tau) and q = softmax(z_S / tau), summed over the predicted tokens:

- ``forward``:  KL(p || q)                       Source: arXiv 2510.13998, logits distillation (tau 5)
- ``reverse``:  KL(q || p)
- ``cakld``:    c KL(q || p) + (1 - c) KL(p || q)  Source: arXiv 2402.10631, confidence-aware KL

``c`` is the teacher's confidence in the true token. Differs: the paper measures one average over the training data
beforehand; without ``confidence`` we take the probability of each token itself, which needs no second pass. Of a
teacher that gives only its K most probable tokens, a true token that is not among them counts as 0.

``temperature_squared`` multiplies by tau^2 (arXiv 1503.02531, section 2), which keeps the gradient's size when tau
changes. BitDistill's paper writes no such factor, so the default is off: its lambda = 10 means lambda = 10 here.

``top_k`` compares only the teacher's K most probable tokens; what happens to all others is ``rest``:

- ``bucket``: they are one more class, with the mass that is left, for teacher and student alike. This is the
  divergence of two distributions over K + 1 classes: never negative, 0 only if all classes agree, and at most the
  divergence over the whole vocabulary (data-processing inequality), which it equals for K = V - 1 and K = V.
- ``drop``: both are renormalised over the K tokens, softmax(log p_k / tau) and softmax(z_k / tau). The student's mass
  elsewhere is then free.

A teacher that gives K tokens and no logits (remote, cached) leaves the mass of its rest at tau != 1 unknown: between
r^(1/tau) if one token holds it all, and (V - K)^(1 - 1/tau) r^(1/tau) if all share it, before normalisation. Nothing
is guessed: ``bucket`` with such a teacher needs tau = 1, ``drop`` takes any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.objectives.base import Logits, Needs, number, predicted
from wrinklefree.teachers.base import TopKRows

Divergence = Literal["forward", "reverse", "cakld"]
Rest = Literal["bucket", "drop"]
_DIVERGENCES = ("forward", "reverse", "cakld")
_RESTS = ("bucket", "drop")
# The rest of K float32 log-probabilities that add up to 1 is rounding, K 6e-8 at most; a logarithm needs a floor.
_SPARSE_REST = 1e-7


@dataclass(frozen=True)
class LogitsKD:
    """``temperature`` tau > 0; ``confidence`` in [0, 1] only with ``cakld``; ``top_k`` None is the whole vocabulary.

    ``top_k`` None with a teacher that gives K tokens takes those K.
    """

    divergence: Divergence = "forward"
    temperature: float = 5.0
    temperature_squared: bool = False
    confidence: float | None = None
    top_k: int | None = None
    rest: Rest = "bucket"

    needs = Needs(teacher=True)
    place: ClassVar[str] = "logits_kd"  # in messages

    def __post_init__(self) -> None:
        if self.divergence not in _DIVERGENCES:
            raise unknown_name(f"{self.place}.divergence", self.divergence, _DIVERGENCES)
        if self.rest not in _RESTS:
            raise unknown_name(f"{self.place}.rest", self.rest, _RESTS)
        if not self.temperature > 0.0:
            raise InputError(f"{self.place}.temperature: found {self.temperature}, it must be above 0")
        if self.confidence is not None and self.divergence != "cakld":
            raise InputError(f"{self.place}.confidence: only divergence=cakld reads it; remove it")
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise InputError(f"{self.place}.confidence: found {self.confidence}, allowed is 0 to 1")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(
                f"{self.place}.top_k: found {self.top_k}, it must be at least 1 (null is the whole vocabulary)"
            )

    def count(self, batch: TokenBatch) -> int:
        return number(predicted(batch))

    def check_sparse(self, top_k: int) -> None:
        """Raise InputError when a teacher that gives ``top_k`` tokens and nothing else does not suffice."""
        if self.rest == "bucket" and self.temperature != 1.0:
            raise InputError(
                f"{self.place}.temperature: found {self.temperature}, but the teacher gives only its {top_k} best "
                "tokens, whose rest has no known mass at a temperature other than 1; set temperature=1, or rest=drop"
            )
        if (self.top_k or 0) > top_k:
            raise InputError(
                f"{self.place}.top_k: found {self.top_k}, the teacher gives {top_k} tokens (teacher.top_k)"
            )

    def chunk(
        self, student: Tensor, teacher: Tensor | TopKRows | None, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The definition, through autograd; `block` is the same with its gradient written out."""
        assert teacher is not None
        source = Logits(teacher) if isinstance(teacher, Tensor) else teacher
        return self._per_token(student, teacher, targets).sum(), self._metrics(Logits(student.detach()), source)

    def _per_token(self, student: Tensor, teacher: Tensor | TopKRows, targets: Tensor) -> Tensor:
        """Return the loss of each token, [n]."""
        log_q = F.log_softmax(student / self.temperature, dim=-1)
        if self.top_k is None and isinstance(teacher, Tensor):
            log_p = F.log_softmax(teacher / self.temperature, dim=-1)
        else:
            ids, log_p = self._teacher_classes(Logits(teacher) if isinstance(teacher, Tensor) else teacher)
            log_q = _classes(log_q, ids, self.rest)
        source = Logits(teacher) if isinstance(teacher, Tensor) else teacher
        backward = self._reverse_share(source, targets)
        return self._scale() * (backward * _kl(log_q, log_p) + (1.0 - backward) * _kl(log_p, log_q))

    def block(
        self,
        student: Logits,
        teacher: Logits | TopKRows | None,
        targets: Tensor,
        gradient: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher is not None
        backward = self._reverse_share(teacher, targets)
        scale = self._scale()
        step = factor * scale / self.temperature
        if isinstance(teacher, Logits) and self.top_k is None:
            per_token = self._whole(student, teacher, backward, gradient, step)
        else:
            per_token = self._partial(student, teacher, backward, gradient, step)
        return scale * per_token.sum(), self._metrics(student, teacher)

    def _scale(self) -> float:
        return self.temperature**2 if self.temperature_squared else 1.0

    def _metrics(self, student: Logits, teacher: Logits | TopKRows) -> dict[str, Tensor]:
        first = teacher.values.max(dim=-1).indices if isinstance(teacher, Logits) else teacher.ids[:, 0]
        # Where the student's highest logit is; of equal ones any counts. (A search for its place costs more.)
        agreed = student.values.gather(1, first[:, None])[:, 0] == student.highest()
        return {"top1_agreement": agreed.sum().float()}

    def _reverse_share(self, teacher: Logits | TopKRows, targets: Tensor) -> Tensor:
        """The share of KL(q || p), [n] or a scalar."""
        if self.divergence != "cakld" or self.confidence is not None:
            share = {"forward": 0.0, "reverse": 1.0, "cakld": self.confidence or 0.0}[self.divergence]
            return torch.tensor(share, device=targets.device)
        if isinstance(teacher, Logits):
            return (teacher.values.gather(1, targets[:, None])[:, 0] - teacher.log_norm()).exp()
        return (teacher.log_probs.exp() * (teacher.ids == targets[:, None])).sum(dim=-1)

    def _whole(
        self, student: Logits, teacher: Logits, backward: Tensor, gradient: Tensor | None, step: float
    ) -> Tensor:
        """Over the whole vocabulary: d KL(p||q) / dz = (q - p) / tau, d KL(q||p) / dz = q (log q/p - KL) / tau."""
        tau = self.temperature
        q, p = student.probs(tau), teacher.probs(tau)
        norms = student.log_norm(tau) - teacher.log_norm(tau)
        gap = teacher.values - student.values
        if self.divergence == "forward":
            if gradient is not None:
                gradient.add_(q, alpha=step).sub_(p, alpha=step)
            return torch.linalg.vecdot(p, gap) / tau + norms
        ratio = gap.div_(-tau).sub_(norms[:, None])  # log q / p
        reverse, forward = torch.linalg.vecdot(q, ratio), -torch.linalg.vecdot(p, ratio)
        backward = backward.expand_as(reverse)
        if gradient is not None:
            gradient.addcmul_(ratio.sub_(reverse[:, None]).mul_(backward[:, None]), q, value=step)
            gradient.add_((q - p).mul_((1.0 - backward)[:, None]), alpha=step)
        return backward * reverse + (1.0 - backward) * forward

    def _partial(
        self, student: Logits, teacher: Logits | TopKRows, backward: Tensor, gradient: Tensor | None, step: float
    ) -> Tensor:
        """Over classes b: dL/dz_v = (G_b q_v / Q_b - q_v sum G) / tau, with G = dL / d log Q and b the class of v."""
        ids, log_p = self._teacher_classes(teacher)
        at_ids = student.values.gather(1, ids) / self.temperature
        others = None
        if self.rest == "drop":
            log_q = F.log_softmax(at_ids, dim=-1)
        else:
            log_q = at_ids - student.log_norm(self.temperature)[:, None]
            if log_p.shape[1] > ids.shape[1]:
                others = student.probs(self.temperature).scatter(1, ids, 0.0)
                log_q = torch.cat([log_q, _log_mass(others)], dim=1)
        ratio = log_q - log_p
        p, q = log_p.exp(), log_q.exp()
        reverse = backward * _total(q, ratio)
        forward = (1.0 - backward) * -_total(p, ratio)
        if gradient is not None:
            share = backward.expand(ids.shape[0])[:, None]
            g = share * torch.where(q > 0, q * (ratio + 1.0), 0.0) - (1.0 - share) * p
            total = g.sum(dim=1, keepdim=True)
            kept = ids.shape[1]
            gradient.scatter_add_(1, ids, (g[:, :kept] - q[:, :kept] * total).mul_(step))
            if others is not None:
                # Not as a correction of q at the kept tokens: G / Q of a tiny rest is large and would round them off.
                gradient.addcmul_(others, g[:, kept:] / q[:, kept:].clamp_min(_TINY) - total, value=step)
        return reverse + forward

    def _teacher_classes(self, teacher: Logits | TopKRows) -> tuple[Tensor, Tensor]:
        """Return token ids [n, K] and the log-probabilities of the classes, [n, K + 1] or [n, K]."""
        if isinstance(teacher, Logits):
            kept = min(self.top_k or teacher.values.shape[1], teacher.values.shape[1])
            ids = teacher.values.topk(kept, dim=-1).indices
            if self.rest == "drop":
                return ids, F.log_softmax(teacher.values.gather(1, ids) / self.temperature, dim=-1)
            log_p = teacher.values.gather(1, ids) / self.temperature - teacher.log_norm(self.temperature)[:, None]
            if kept == teacher.values.shape[1]:
                return ids, log_p
            return ids, torch.cat([log_p, _log_mass(teacher.probs(self.temperature).scatter(1, ids, 0.0))], dim=1)
        self.check_sparse(teacher.ids.shape[1])
        kept = self.top_k or teacher.ids.shape[1]
        ids, log_p = teacher.ids[:, :kept], teacher.log_probs[:, :kept]
        if self.rest == "drop":
            return ids, F.log_softmax(log_p / self.temperature, dim=-1)
        rest = (1.0 - log_p.double().exp().sum(dim=1, keepdim=True)).clamp_min(_SPARSE_REST)
        return ids, torch.cat([log_p, rest.log().float()], dim=1)


_TINY = torch.finfo(torch.float32).tiny


def _log_mass(probs: Tensor) -> Tensor:
    """Return the logarithm of each row's sum, [n, 1]."""
    return probs.sum(dim=1, keepdim=True).clamp_min(_TINY).log()


def _classes(log_q: Tensor, ids: Tensor, rest: Rest) -> Tensor:
    """Return the log-probabilities of the classes of log_q [n, V]: the ids', and the rest's when there is one."""
    kept = log_q.gather(1, ids)
    if rest == "drop":
        return F.log_softmax(kept, dim=-1)
    if ids.shape[1] == log_q.shape[1]:
        return kept
    return torch.cat([kept, _log_mass(log_q.exp().scatter(1, ids, 0.0))], dim=1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row, [n]."""
    return F.kl_div(log_b, log_a, log_target=True, reduction="none").sum(dim=-1)


def _total(weights: Tensor, values: Tensor) -> Tensor:
    """Return the sum of weights * values of each row, [n], where weight 0 wins over any value."""
    return torch.where(weights > 0, weights * values, 0.0).sum(dim=1)
