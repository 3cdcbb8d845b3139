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
from wrinklefree.objectives.base import Needs
from wrinklefree.objectives.noise import CLEAN_HALF, MASKED, NOISED_VIEW, NoisedBatch


@dataclass(frozen=True)
class BlockDiffusion:
    """Metrics, all per counted token: ``ce`` without the weights 1/t, ``top1`` how often the token came first.

    ``masked``: the share of the counted tokens that was masked (1 without weights).
    """

    needs = Needs(view=NOISED_VIEW, rows=MASKED)

    def count(self, batch: TokenBatch) -> int:
        return counted(batch)

    def chunk(
        self, student: Tensor, teacher: Tensor | None, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        per_token = F.cross_entropy(student, targets, reduction="none")
        total = per_token.sum() if weights is None else (weights * per_token).sum()
        return total, {
            "ce": per_token.detach().sum(),
            "top1": (student.detach().argmax(dim=-1) == targets).float().sum(),
            "masked": torch.tensor(float(len(targets)), device=targets.device),
        }


@dataclass(frozen=True)
class CleanHalf:
    """Next-token cross-entropy on the clean half of the noised view, which costs no forward of its own.

    It needs a causal clean half (``diffusion.clean_half``, which variant ``causal`` has). Its part of the loss can be
    balanced: arXiv 2604.11035 sets it equal to that of the masked tokens (``balance: {kind: loss, target: 1.0}``).
    """

    needs = Needs(view=NOISED_VIEW, rows=CLEAN_HALF)

    def count(self, batch: TokenBatch) -> int:
        return len(batch.selection(CLEAN_HALF).targets)

    def chunk(self, student: Tensor, teacher: Tensor | None, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = F.cross_entropy(student, targets, reduction="sum")
        return loss, {"ce": loss.detach()}


def counted(batch: TokenBatch) -> int:
    """Return the tokens that a sum over the masked ones of a noised view is divided by."""
    assert isinstance(batch, NoisedBatch), "an objective on masked tokens was given another view"
    return batch.counted
