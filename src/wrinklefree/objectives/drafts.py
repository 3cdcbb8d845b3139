"""Training a causal diffusion model to draft for itself: its clean half learns from the teacher, its MASKs from it.

In self-speculative decoding the state of a MASK proposes a token with a distribution q, which the same model's
next-token distribution p, given the tokens before, then accepts with the probability

    sum_v min(p_v, q_v) = 1 - (1/2) sum_v |p_v - q_v|  >=  1 - sqrt(KL(p || q) / 2)

Source: arXiv 2211.17192, section 3.1 (the left side); Pinsker's inequality (the right one). So what a draft should
imitate is the student's own p and no better model's. It costs no forward: p is computed in the clean half of the same
row. arXiv 2310.08461 (section 3) compares divergences for distilling a draft model from its target, and there too the
target's distribution is what is learned from; differs: here both are one model, and p is held fixed (no gradient),
so that drafting cannot pull the next-token distribution towards what is easy to draft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from wrinklefree.data.batch import TokenBatch
from wrinklefree.objectives.base import Needs
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.noise import CLEAN_HALF, DRAFTS, NOISED_VIEW


@dataclass(frozen=True)
class CleanHalfKD(LogitsKD):
    """`LogitsKD` on the clean half of the noised view, which costs no forward of its own.

    It needs a causal clean half (``diffusion.clean_half``, which variant ``causal`` has).
    """

    needs = Needs(teacher=True, view=NOISED_VIEW, rows=CLEAN_HALF)
    place: ClassVar[str] = "clean_half_kd"

    def count(self, batch: TokenBatch) -> int:
        return len(batch.selection(CLEAN_HALF).targets)


@dataclass(frozen=True)
class Drafts(LogitsKD):
    """KL(p || q) at every masked token that a noised state predicts; other settings as of `LogitsKD`.

    ``top1_agreement`` is the greedy acceptance, averaged over the masked tokens as they are drawn.
    """

    temperature: float = 1.0

    needs = Needs(view=NOISED_VIEW, rows=DRAFTS)
    place: ClassVar[str] = "drafts"

    def count(self, batch: TokenBatch) -> int:
        return len(batch.selection(DRAFTS).targets)
