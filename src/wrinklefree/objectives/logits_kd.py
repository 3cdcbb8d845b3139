"""Distillation of the teacher's next-token distribution, over the whole vocabulary, in float32.

With p = softmax(z_T / tau) and q = softmax(z_S / tau), summed over the predicted tokens:

- ``forward``:  KL(p || q)                       Source: arXiv 2510.13998, logits distillation (tau 5)
- ``reverse``:  KL(q || p)
- ``cakld``:    c KL(q || p) + (1 - c) KL(p || q)  Source: arXiv 2402.10631, confidence-aware KL

``c`` is the teacher's confidence in the true token. Differs: the paper measures one average over the training data
beforehand; without ``confidence`` we take the probability of each token itself, which needs no second pass.

``temperature_squared`` multiplies by tau^2 (arXiv 1503.02531, section 2), which keeps the gradient's size when tau
changes. BitDistill's paper writes no such factor, so the default is off: its lambda = 10 means lambda = 10 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.objectives.base import Needs, number, predicted

Divergence = Literal["forward", "reverse", "cakld"]
_DIVERGENCES = ("forward", "reverse", "cakld")


@dataclass(frozen=True)
class LogitsKD:
    """``temperature`` tau > 0; ``confidence`` in [0, 1] only with ``cakld``."""

    divergence: Divergence = "forward"
    temperature: float = 5.0
    temperature_squared: bool = False
    confidence: float | None = None

    needs = Needs(teacher=True)

    def __post_init__(self) -> None:
        if self.divergence not in _DIVERGENCES:
            raise unknown_name("logits_kd.divergence", self.divergence, _DIVERGENCES)
        if not self.temperature > 0.0:
            raise InputError(f"logits_kd.temperature: found {self.temperature}, it must be above 0")
        if self.confidence is not None and self.divergence != "cakld":
            raise InputError("logits_kd.confidence: only divergence=cakld reads it; remove it")
        if self.confidence is not None and not 0.0 <= self.confidence <= 1.0:
            raise InputError(f"logits_kd.confidence: found {self.confidence}, allowed is 0 to 1")

    def count(self, batch: TokenBatch) -> int:
        return number(predicted(batch))

    def chunk(self, student: Tensor, teacher: Tensor | None, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert teacher is not None
        log_q, log_p = self._log_softmax(student), self._log_softmax(teacher)
        per_token = self._divergence(log_p, log_q, teacher, targets)
        if self.temperature_squared:
            per_token = per_token * self.temperature**2
        same = (student.detach().argmax(dim=-1) == teacher.argmax(dim=-1)).sum()
        return per_token.sum(), {"top1_agreement": same.float()}

    def _log_softmax(self, logits: Tensor) -> Tensor:
        # At temperature 1 the division would only be another pass over the largest tensor there is.
        return F.log_softmax(logits if self.temperature == 1.0 else logits / self.temperature, dim=-1)

    def _divergence(self, log_p: Tensor, log_q: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Return the divergence of each token, [n]."""
        if self.divergence == "forward":
            return _kl(log_p, log_q)
        if self.divergence == "reverse":
            return _kl(log_q, log_p)
        weight: Tensor | float
        if self.confidence is None:
            weight = F.log_softmax(teacher, dim=-1).gather(1, targets[:, None])[:, 0].exp()
        else:
            weight = self.confidence
        return weight * _kl(log_q, log_p) + (1.0 - weight) * _kl(log_p, log_q)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b) of each row, [n]."""
    return F.kl_div(log_b, log_a, log_target=True, reduction="none").sum(dim=-1)
