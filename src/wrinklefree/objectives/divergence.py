"""Divergences between a teacher's and a student's distribution over the vocabulary, token by token, in float32.

Shapes: n tokens, V vocabulary, K tokens that the teacher finds most probable.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension of log probabilities [n, V] -> [n]."""
    return F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)


def top_k_kl(student: Tensor, teacher: Tensor, k: int, temperature: float = 1.0, rest: bool = True) -> Tensor:
    """KL(p || q) [n] over the teacher's ``k`` most probable tokens, from float32 logits [n, V].

    ``rest`` adds one class for all other tokens together, so that no mass is lost and the divergence is 0 only where
    the K probabilities agree. Without it both are renormalised over the K tokens, and what the student puts elsewhere
    costs nothing.
    """
    scaled_s, scaled_t = student / temperature, teacher / temperature
    ids = torch.topk(scaled_t, min(k, scaled_t.shape[1]), dim=1).indices
    top_s, top_t = scaled_s.gather(1, ids), scaled_t.gather(1, ids)
    if rest and k < scaled_t.shape[1]:
        top_s = torch.cat([top_s, _others(scaled_s, ids)], dim=1)
        top_t = torch.cat([top_t, _others(scaled_t, ids)], dim=1)
    return kl(F.log_softmax(top_t, dim=1), F.log_softmax(top_s, dim=1))


def _others(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the logit [n, 1] of all classes but ``ids`` [n, K] as one: the logarithm of their summed exponentials."""
    return logits.scatter(1, ids, float("-inf")).logsumexp(dim=1, keepdim=True)
