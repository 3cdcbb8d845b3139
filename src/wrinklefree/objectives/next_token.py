"""Next-token cross-entropy: -log softmax(z_i)[x_{i+1}], summed over the predicted tokens of each document."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.objectives.base import Logits, Needs, number, predicted
from wrinklefree.teachers.base import TopKRows


@dataclass(frozen=True)
class NextToken:
    """``label_smoothing`` e mixes the target with the uniform distribution: (1 - e) one-hot + e / V.

    The metric ``ce`` is always the unsmoothed cross-entropy, so that exp(ce) is a perplexity.
    """

    label_smoothing: float = 0.0

    needs = Needs()

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"next_token.label_smoothing: found {self.label_smoothing}, allowed is 0 to below 1")

    def count(self, batch: TokenBatch) -> int:
        return number(predicted(batch))

    def chunk(
        self, student: Tensor, teacher: Tensor | TopKRows | None, targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.label_smoothing:
            loss = F.cross_entropy(student, targets, reduction="sum")
            return loss, {"ce": loss.detach()}
        smoothed = F.cross_entropy(student, targets, reduction="sum", label_smoothing=self.label_smoothing)
        return smoothed, {"ce": F.cross_entropy(student.detach(), targets, reduction="sum")}

    def block(
        self,
        student: Logits,
        teacher: Logits | TopKRows | None,
        targets: Tensor,
        gradient: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        log_norm, smoothing = student.log_norm(), self.label_smoothing
        ce = (log_norm - student.values.gather(1, targets[:, None])[:, 0]).sum()
        if gradient is not None:
            # d/dz of -sum_v t_v log softmax(z)_v is softmax(z) - t.
            gradient.add_(student.probs(), alpha=factor)
            hits = torch.full_like(log_norm, -factor * (1.0 - smoothing))
            gradient.scatter_add_(1, targets[:, None], hits[:, None])
            if smoothing:
                gradient.sub_(factor * smoothing / gradient.shape[1])
        if not smoothing:
            return ce, {"ce": ce}
        uniform = (log_norm - student.values.mean(dim=-1)).sum()
        return (1.0 - smoothing) * ce + smoothing * uniform, {"ce": ce}
