"""Learning to classify: from labels, and from a teacher that was fine-tuned on the task in full precision.

Both sum over the sequences of a batch, on the head's logits [B, C] of each sequence's last real token, in float32.
`data.supervised.ClassBatch.classes` says by its type what is predicted:

- int64 [B], one class        cross-entropy;               distilled: KL(p_T || p_S) of softmax(z / tau)
- float32 [B, C], any number  binary cross-entropy, mean over the C classes;
                              distilled: the KL of each class's sigmoid(z / tau), mean over them
- float32 [B], a number       squared error;               distilled: squared difference of the two predictions

Source: arXiv 2510.13998, section 3.3: logits distillation with tau = 5 and, for classification, lambda = 10, no
tau^2. Its teacher is the full-precision model after fine-tuning on the same task. The paper has single-label tasks;
the other two rows are the natural extension and ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.supervised import ClassBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import ForwardOutput
from wrinklefree.models.pooling import pooled
from wrinklefree.objectives.base import Context, LossSum, Needs, real


@dataclass(frozen=True)
class Classification:
    """From labels. ``label_smoothing`` is for tasks of one class. Metric ``accuracy`` (of the classes, where several
    may apply), not for numbers.
    """

    label_smoothing: float = 0.0

    needs = Needs()

    def __post_init__(self) -> None:
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InputError(f"classification.label_smoothing: found {self.label_smoothing}, allowed is 0 to below 1")

    def count(self, batch: TokenBatch) -> int:
        return batch.num_sequences

    def loss(self, context: Context) -> LossSum:
        logits, classes = class_logits(context.student, context.batch), _classes(context.batch)
        if classes.dtype == torch.int64:
            total = F.cross_entropy(logits, classes, reduction="sum", label_smoothing=self.label_smoothing)
            right = (logits.detach().argmax(dim=1) == classes).float().sum()
            return LossSum(total, len(classes), {"accuracy": right})
        if classes.ndim == 2:
            total = F.binary_cross_entropy_with_logits(logits, classes, reduction="none").mean(dim=1).sum()
            right = ((logits.detach() > 0.0) == classes.bool()).float().mean(dim=1).sum()
            return LossSum(total, len(classes), {"accuracy": right})
        return LossSum((logits[:, 0] - classes).square().sum(), len(classes))


@dataclass(frozen=True)
class ClassKD:
    """From a teacher's class logits, at ``temperature`` tau > 0 (not read for numbers). Metric ``top1_agreement``."""

    temperature: float = 5.0

    needs = Needs(teacher=True)

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise InputError(f"class_kd.temperature: found {self.temperature}, it must be above 0")

    def count(self, batch: TokenBatch) -> int:
        return batch.num_sequences

    def loss(self, context: Context) -> LossSum:
        ours, theirs = (class_logits(each, context.batch) for each in (context.student, context.taught()))
        if ours.shape != theirs.shape:
            raise InputError(f"class_kd: the teacher has {theirs.shape[1]} classes, the student {ours.shape[1]}")
        classes = _classes(context.batch)
        if classes.dtype != torch.int64 and classes.ndim == 1:
            return LossSum((ours - theirs).square().sum(), len(ours))
        s, t = ours / self.temperature, theirs / self.temperature
        if classes.ndim == 2:
            s, t = (torch.stack([z, torch.zeros_like(z)], dim=-1) for z in (s, t))  # sigmoid(z) = softmax([z, 0])
        log_q, log_p = F.log_softmax(s, dim=-1), F.log_softmax(t, dim=-1)
        divergence = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1)
        total = (divergence.mean(dim=1) if classes.ndim == 2 else divergence).sum()
        same = (ours.detach().argmax(dim=1) == theirs.argmax(dim=1)).float().sum()
        return LossSum(total, len(ours), {"top1_agreement": same})


def class_logits(output: ForwardOutput, batch: TokenBatch) -> Tensor:
    """Return float32 logits [B, C] of the last real token of each sequence."""
    states = pooled(output.final, real(batch))
    logits: Tensor = output.head(states.to(next(output.head.parameters()).dtype))
    return logits.float()


def _classes(batch: TokenBatch) -> Tensor:
    if not isinstance(batch, ClassBatch) or batch.classes is None:
        raise InputError("objectives: classification needs labelled examples; set task.kind=classification")
    return batch.classes
