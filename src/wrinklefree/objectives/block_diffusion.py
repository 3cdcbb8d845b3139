"""Block diffusion: predict the tokens that were replaced by MASK, from their block and the clean text before it.

On the noised view (`objectives.noise`), with M the masked tokens of all views,

    L = - (1 / |M|) sum_{i in M} log softmax(z_i)[x_i]                       fast_dllm, causal
    L = - (1 / N) sum_{i in M} (1 / t_i) log softmax(z_i)[x_i]               llada, N all tokens that may be masked

Sources: arXiv 2509.26328, section 3.2; arXiv 2502.09992, equation 3. MASK itself has probability 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.objectives.base import Logits, Needs
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.objectives.noise import CLEAN_HALF, MASKED, NOISED_VIEW, NoisedBatch
from wrinklefree.teachers.base import TopKRows


@dataclass(frozen=True)
class BlockDiffusion:
    """Metrics, all per counted token: ``ce`` without the weights 1/t, ``top1`` how often the token came first.

    ``masked``: the share of the counted tokens that was masked (1 without weights).
    """

    needs = Needs(view=NOISED_VIEW, rows=MASKED)

    def count(self, batch: TokenBatch) -> int:
        return counted(batch)

    def chunk(
        self, student: Tensor, teacher: Tensor | TopKRows | None, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        per_token = F.cross_entropy(student, targets, reduction="none")
        total = per_token.sum() if weights is None else (weights * per_token).sum()
        return total, self._metrics(per_token.detach().sum(), Logits(student.detach()), targets)

    def block(
        self,
        student: Logits,
        teacher: Logits | TopKRows | None,
        targets: Tensor,
        gradient: Tensor | None,
        factor: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        ce, _ = NextToken().block(student, teacher, targets, gradient, factor)
        return ce, self._metrics(ce, student, targets)

    def _metrics(self, ce: Tensor, student: Logits, targets: Tensor) -> dict[str, Tensor]:
        top1 = (student.peak()[1] == targets).sum().float()
        return {"ce": ce, "top1": top1, "masked": torch.tensor(float(len(targets)), device=targets.device)}


@dataclass(frozen=True)
class CleanHalf(NextToken):
    """Next-token cross-entropy on the clean half of the noised view, which costs no forward of its own.

    It needs a causal clean half (``diffusion.clean_half``, which variant ``causal`` has). Its part of the loss can be
    balanced: arXiv 2604.11035 sets it equal to that of the masked tokens (``balance: {kind: loss, target: 1.0}``).
    """

    needs = Needs(view=NOISED_VIEW, rows=CLEAN_HALF)

    def count(self, batch: TokenBatch) -> int:
        return len(batch.selection(CLEAN_HALF).targets)


def counted(batch: TokenBatch) -> int:
    """Return the tokens that a sum over the masked ones of a noised view is divided by."""
    assert isinstance(batch, NoisedBatch), "an objective on masked tokens was given another view"
    return batch.counted
