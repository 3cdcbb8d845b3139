"""Attention relations inside blocks, from an autoregressive teacher to a diffusion student.

The relations of `objectives.attention_relation`, but each token relates to the tokens of its own block only, in the
student's noised half. For X in {Q, K, V} and every token t of the noised half that is real,

    L = sum_X alpha_X / A_r  sum_a KL( R_T[a, t] || R_S[a, t] ),     R over the block of t

Teacher and student states are those that predict the same token: with token shift the state of token i is compared
with the teacher's state of token i, without shift with the teacher's state of token i - 1 (so a document's first token
is left out).

Limits, which no weight removes. A causal teacher's state knows nothing of what follows in the block, the student's
state does: where the right context matters the two should differ, and this loss pulls against that. The teacher's input
is the token where the student's is MASK. So it can only transfer how a block hangs together as seen from the left; it
is meant as a small regulariser early in a conversion, with a balanced weight. No paper gives figures for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wrinklefree.data.batch import TokenBatch
from wrinklefree.models.forward import qkv
from wrinklefree.objectives.attention_relation import AttentionRelation, log_relations, row_kl
from wrinklefree.objectives.base import Context, LossSum, Needs, number
from wrinklefree.objectives.noise import NOISED_VIEW, NoisedBatch


@dataclass(frozen=True)
class BlockAttention(AttentionRelation):
    """Settings as of `AttentionRelation`."""

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, states=frozenset({qkv(self.layer)}), view=NOISED_VIEW)

    def count(self, batch: TokenBatch) -> int:
        return number(_compared(batch)[0])

    def loss(self, context: Context) -> LossSum:
        mask, taught = _compared(context.batch)
        slots = mask.shape[1]
        documents, blocks = context.batch.document_ids[:, :slots], _noised(context.batch).block_ids[:, :slots]
        together = (documents[:, :, None] == documents[:, None, :]) & (blocks[:, :, None] == blocks[:, None, :])
        # A slot that is not compared sees itself, so that softmax stays finite; its divergence is not summed.
        alone = torch.eye(slots, dtype=torch.bool, device=mask.device) & ~mask[:, None, :]
        allowed = (together & mask[:, :, None] & mask[:, None, :] | alone)[:, None]
        total = torch.zeros((), dtype=torch.float32, device=mask.device)
        metrics: dict[str, Tensor] = {}
        states = zip(
            "qkv", self.alpha, context.student.projections[self.layer], context.taught().projections[self.layer],
            strict=True,
        )  # fmt: skip
        for name, alpha, s, t in states:
            theirs = t.flatten(0, 1)[taught]
            divergence = row_kl(log_relations(self, theirs, allowed), log_relations(self, s[:, :slots], allowed))
            value = (divergence.mean(dim=1) * mask).sum()
            metrics[name] = value.detach()
            total = total + alpha * value
        return LossSum(total, number(mask), metrics)


def _compared(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Return which noised slots are compared, bool [V B, S], and the teacher's state for each (0 where none)."""
    noised = _noised(batch)
    state = noised.slots if noised.shifted else noised.slots - 1
    first = noised.position_ids[:, : noised.slots.shape[1]] == 0
    mask = (noised.slots >= 0) & (noised.shifted | ~first)
    return mask, torch.where(mask, state, 0)


def _noised(batch: TokenBatch) -> NoisedBatch:
    assert isinstance(batch, NoisedBatch), "an objective on blocks was given another view"
    return batch
