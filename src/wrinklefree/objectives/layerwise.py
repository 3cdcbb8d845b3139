"""Layer-wise distillation: the student's residual stream after each decoder layer against the teacher's.

For s, t of one token and layer (both [D], before the final norm; the embedding is no layer):

- ``mse_normalized``  || s/|s| - t/|t| ||^2 = 2 (1 - cos)   (sum over D, not mean: the value does not fade with D)
- ``cosine``          1 - cos(s, t)
- ``mse``             mean over D of (s - t)^2
- ``kl``              KL(softmax(W n(t)) || softmax(W n(s))), n and W the teacher's frozen final norm and head
- ``inner_product``   - cos(s, t)

Each layer's value is weighted, weights sum to 1: ``uniform``; ``progressive`` 1, 2, ... L; ``exponential`` 2^i (half of
the weight is on the last layer); or a list. The sum runs over tokens that are not padding.

Source: arXiv 2402.11295 (OneBit, section 3.4: normalised states), arXiv 1412.6550. Student and teacher need the same
number of layers and the same D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.forward import HIDDEN, ForwardOutput, soft_capped
from wrinklefree.objectives.base import Context, LossSum, Needs, number, real
from wrinklefree.objectives.head import chunk_tokens

Metric = Literal["mse_normalized", "cosine", "mse", "kl", "inner_product"]
_METRICS = ("mse_normalized", "cosine", "mse", "kl", "inner_product")
_WEIGHTS = ("uniform", "progressive", "exponential")


@dataclass(frozen=True)
class Layerwise:
    """``layer_weights``: a name of the module's list, or a number for each layer. ``temperature`` divides the loss."""

    metric: Metric = "mse_normalized"
    layer_weights: str | tuple[float, ...] = "uniform"
    temperature: float = 1.0

    needs = Needs(teacher=True, states=frozenset({HIDDEN}))

    def __post_init__(self) -> None:
        if self.metric not in _METRICS:
            raise unknown_name("layerwise.metric", self.metric, _METRICS)
        if self.temperature <= 0.0:
            raise InputError(f"layerwise.temperature: found {self.temperature}, it must be above 0")
        if isinstance(self.layer_weights, str) and self.layer_weights not in _WEIGHTS:
            raise unknown_name("layerwise.layer_weights", self.layer_weights, _WEIGHTS)

    def count(self, batch: TokenBatch) -> int:
        return number(real(batch))

    def loss(self, context: Context) -> LossSum:
        student, teacher = context.student, context.taught()
        _check_shapes(student, teacher)
        mask = real(context.batch)
        weights = layer_weights(self.layer_weights, len(student.hidden_states))
        total = torch.zeros((), dtype=torch.float32, device=mask.device)
        distance = torch.zeros_like(total)
        last = total
        for weight, ours, theirs in zip(weights, student.hidden_states, teacher.hidden_states, strict=True):
            s, t = ours[mask].float(), theirs[mask].float()
            value = self._value(s, t, teacher)
            with torch.no_grad():
                last = (1.0 - F.cosine_similarity(s, t, dim=-1)).sum()
                distance += last / len(weights)
            total = total + weight * value
        return LossSum(total / self.temperature, number(mask), {"one_minus_cos": distance, "one_minus_cos_last": last})

    def _value(self, s: Tensor, t: Tensor, teacher: ForwardOutput) -> Tensor:
        """Return the metric summed over the tokens of s and t, [n, D]."""
        if self.metric == "mse":
            return (s - t).square().mean(dim=-1).sum()
        if self.metric == "kl":
            return _vocabulary_kl(s, t, teacher)
        cosine = F.cosine_similarity(s, t, dim=-1)
        if self.metric == "inner_product":
            return -cosine.sum()
        return (1.0 - cosine).sum() * (2.0 if self.metric == "mse_normalized" else 1.0)


def layer_weights(kind: str | tuple[float, ...], layers: int) -> list[float]:
    """Return ``layers`` weights that sum to 1.

    Raises: InputError for a list of another length, with a negative entry, or of zeros.
    """
    if isinstance(kind, str):
        # 2^(i - L) instead of 2^i: the same weights after normalisation, without overflow.
        raw = {
            "uniform": [1.0] * layers,
            "progressive": [i + 1.0 for i in range(layers)],
            "exponential": [2.0 ** (i + 1 - layers) for i in range(layers)],
        }[kind]
    else:
        raw = [float(weight) for weight in kind]
    if len(raw) != layers:
        raise InputError(f"layerwise.layer_weights: found {len(raw)} weights, the model has {layers} layers")
    if min(raw) < 0.0 or sum(raw) <= 0.0:
        raise InputError("layerwise.layer_weights: weights must not be negative, and not all zero")
    return [weight / sum(raw) for weight in raw]


def _check_shapes(student: ForwardOutput, teacher: ForwardOutput) -> None:
    ours, theirs = student.hidden_states, teacher.hidden_states
    if len(ours) != len(theirs) or ours[0].shape[-1] != theirs[0].shape[-1]:
        raise InputError(
            f"layerwise: the student has {len(ours)} layers of {ours[0].shape[-1]}, the teacher {len(theirs)} of "
            f"{theirs[0].shape[-1]}; they must agree (use logits_kd for a teacher of another shape)"
        )


def _vocabulary_kl(s: Tensor, t: Tensor, teacher: ForwardOutput) -> Tensor:
    """KL(teacher || student) through the teacher's norm and head; recomputed in the backward, chunk by chunk."""
    norm, head = teacher.norm, teacher.head
    parameters = [*norm.parameters(), *head.parameters()]
    dtype = parameters[0].dtype

    def chunk_kl(s_chunk: Tensor, t_chunk: Tensor) -> Tensor:
        log_q = F.log_softmax(soft_capped(head(norm(s_chunk.to(dtype))).float(), teacher.softcap), dim=-1)
        with torch.no_grad():
            log_p = F.log_softmax(soft_capped(head(norm(t_chunk.to(dtype))).float(), teacher.softcap), dim=-1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="sum")

    size = chunk_tokens(int(head.out_features))  # type: ignore[arg-type]
    pieces = [
        checkpoint(chunk_kl, s_chunk, t_chunk, use_reentrant=False)
        for s_chunk, t_chunk in zip(s.split(size), t.split(size), strict=True)
    ]
    return torch.stack(pieces).sum()
