"""Distillation over the whole vocabulary in two passes over logits in bfloat16, where a step needs no more than that.

The objectives say what is computed (`objectives.logits_kd`, `objectives.next_token`); this is the same in one compiled
pass (`quant.passes.distill`), for forward KL and cross-entropy on a CPU. The logits are those of the same matrix
products, and the gradient is rounded to bfloat16, as it is for the product behind it anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.quant.passes import distill, passes

if TYPE_CHECKING:
    from wrinklefree.objectives.head import HeadInputs, HeadSums, HeadTerm

# Logits of one chunk, of student or teacher: many rows for the matrix products, but below what glibc maps anew each
# time (32 MB).
_CHUNK_BYTES = 31 * 1024 * 1024
NEVER = -1e4  # the logit of a token that can never follow: finite, and its probability 0 at any usual temperature


@dataclass(frozen=True)
class FusedTerms:
    """The one distillation term of a step, and its cross-entropy term when there is one."""

    distillation: HeadTerm
    entropy: HeadTerm | None

    @staticmethod
    def of(inputs: HeadInputs, terms: Sequence[HeadTerm], dtype: torch.dtype) -> FusedTerms | None:
        """Return the terms when the pass computes all of them, with the student's products in ``dtype``; else None."""
        teacher = inputs.teacher_head
        if type(teacher) is not nn.Linear or teacher.bias is not None or inputs.teacher_states is None:
            return None
        plain = inputs.weights is None and inputs.softcap is None and inputs.teacher_softcap is None
        narrow = dtype is teacher.weight.dtype is inputs.teacher_states.dtype is torch.bfloat16
        if not plain or not narrow or inputs.states.device.type != "cpu" or passes() is None:
            return None
        distillations = [term for term in terms if _whole(term)]
        entropies = [term for term in terms if isinstance(term.objective, NextToken) and not _smoothed(term)]
        if len(distillations) != 1 or len(entropies) > 1 or len(terms) != 1 + len(entropies):
            return None
        return FusedTerms(distillations[0], entropies[0] if entropies else None)

    def chunk_tokens(self, vocabulary: int) -> int:
        """Return how many tokens one chunk has."""
        return max(16, _CHUNK_BYTES // (2 * vocabulary))

    def chunk(
        self, inputs: HeadInputs, logits: Tensor, rows: slice, sums: HeadSums, wanted: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the weighted total and (when ``wanted``) its gradient ``[n, V]``, from bfloat16 ``logits``."""
        assert inputs.teacher_head is not None and inputs.teacher_states is not None
        kd: LogitsKD = self.distillation.objective  # type: ignore[assignment]
        teacher = F.linear(inputs.teacher_states[rows], inputs.teacher_head.weight)  # type: ignore[arg-type]
        if inputs.banned is not None:
            logits[:, inputs.banned] = teacher[:, inputs.banned] = NEVER
        scale = kd.temperature**2 if kd.temperature_squared else 1.0
        step = self.distillation.factor * scale / kd.temperature if wanted else 0.0
        target_step = self.entropy.factor if self.entropy and wanted else 0.0
        divergence, entropy, agreed = distill(
            logits, teacher, inputs.targets[rows].contiguous(), kd.temperature, step, target_step
        )
        value = scale * divergence.sum()
        sums.add(self.distillation.name, value, {"top1_agreement": agreed.sum().float()})
        total = self.distillation.factor * value
        if self.entropy is not None:
            own = entropy.sum()
            sums.add(self.entropy.name, own, {"ce": own})
            total = total + self.entropy.factor * own
        if not step and not target_step:
            return total, None
        if inputs.banned is not None:
            logits[:, inputs.banned] = 0.0
        return total, logits


def _whole(term: HeadTerm) -> bool:
    kd = term.objective
    return type(kd) is LogitsKD and kd.divergence == "forward" and kd.top_k is None


def _smoothed(term: HeadTerm) -> bool:
    return bool(getattr(term.objective, "label_smoothing", 0.0))
