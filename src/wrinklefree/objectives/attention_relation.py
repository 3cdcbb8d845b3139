"""Attention-relation distillation: how tokens relate in Q, K and V space, at one layer.

A: the projection states of one token set, regrouped into A_r relation heads of size d_r. R: their relations, a
distribution for each token t over the tokens of its own document. For each X in {Q, K, V}

    L = sum_X alpha_X / (A_r |x|) sum_a sum_t KL( R_T[a, t] || R_S[a, t] )

- ``form="scaled_dot"``  R = softmax(A A^T / sqrt(d_r))            Source: arXiv 2510.13998, equations 10-12
- ``form="cosine"``      R = softmax(a a^T / tau), a = A / |A| by row   Source: arXiv 2510.13998, Algorithm 1

The two are different losses (an order of magnitude apart in value and gradient). The sum over t is what `count`
counts; the division by |x| happens once for the whole step.

Details and deviations: states are those of the projections, before QK-norm and rotary embedding. Key and value heads
of grouped-query attention are used as they are, not repeated: repetition would scale A A^T. Relations stay inside a
document and exclude padding; the papers have one document for each sequence. They are not causal, as in the papers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.forward import qkv
from wrinklefree.objectives.base import Context, LossSum, Needs, number, real

Form = Literal["scaled_dot", "cosine"]
_FORMS = ("scaled_dot", "cosine")


@dataclass(frozen=True)
class AttentionRelation:
    """``layer``: negative counts from the last, teacher and student each from their own. ``relation_heads`` A_r.

    ``alpha`` weighs Q, K, V. ``temperature`` tau is read by ``form="cosine"`` only.
    """

    form: Form = "scaled_dot"
    layer: int = -1
    relation_heads: int = 1
    alpha: tuple[float, float, float] = (1.0, 1.0, 1.0)
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in _FORMS:
            raise unknown_name("attention_relation.form", self.form, _FORMS)
        if self.relation_heads < 1 or not self.temperature > 0.0:
            raise InputError("attention_relation: relation_heads must be at least 1 and temperature above 0")
        if self.form == "scaled_dot" and self.temperature != 1.0:
            raise InputError("attention_relation.temperature: only form=cosine reads it; remove it")
        if len(self.alpha) != 3 or min(self.alpha) < 0.0:
            raise InputError("attention_relation.alpha: three numbers, for Q, K and V, none negative")

    @property
    def needs(self) -> Needs:
        return Needs(teacher=True, states=frozenset({qkv(self.layer)}))

    def count(self, batch: TokenBatch) -> int:
        return number(real(batch))

    def loss(self, context: Context) -> LossSum:
        ours = context.student.projections[self.layer]
        theirs = context.taught().projections[self.layer]
        mask = real(context.batch)
        documents = context.batch.document_ids
        allowed = (documents[:, :, None] == documents[:, None, :])[:, None]
        total = torch.zeros((), dtype=torch.float32, device=mask.device)
        metrics: dict[str, Tensor] = {}
        for name, alpha, s, t in zip("qkv", self.alpha, ours, theirs, strict=True):
            # [B, A_r, T], zero on padding rows
            divergence = row_kl(log_relations(self, t, allowed), log_relations(self, s, allowed))
            value = (divergence.mean(dim=1) * mask).sum()
            metrics[name] = value.detach()
            total = total + alpha * value
        return LossSum(total, number(mask), metrics)


def log_relations(relation: AttentionRelation, states: Tensor, allowed: Tensor) -> Tensor:
    """[B, T, H E] -> log R, [B, A_r, T, T] in float32, -inf where ``allowed`` (bool [B, 1, T, T]) is false."""
    width = states.shape[-1]
    if width % relation.relation_heads:
        raise InputError(
            f"attention_relation.relation_heads: {relation.relation_heads} does not divide the {width} channels of "
            "a projection; for grouped-query attention it must divide the key width too"
        )
    heads = states.float().unflatten(-1, (relation.relation_heads, -1)).transpose(1, 2)  # [B, A_r, T, d_r]
    if relation.form == "cosine":
        heads = F.normalize(heads, dim=-1)
        scores = heads @ heads.transpose(-1, -2) / relation.temperature
    else:
        scores = heads @ heads.transpose(-1, -2) / math.sqrt(heads.shape[-1])
    return F.log_softmax(scores.masked_fill(~allowed, float("-inf")), dim=-1)


def row_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension; entries that are not allowed (-inf in both) count nothing."""
    inside = log_p > float("-inf")
    difference = torch.where(inside, log_p, 0.0) - torch.where(inside, log_q, 0.0)
    return (torch.where(inside, log_p.exp(), 0.0) * difference).sum(dim=-1)
