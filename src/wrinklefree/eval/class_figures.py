"""How good guesses among C classes are: accuracy with its interval, F1, MCC, and two models' guesses compared.

Nothing here knows a model: classes are numbers, guesses come as logits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class ClassFigures:
    """``low`` to ``high``: the accuracy's 95 % interval (Wilson). ``loss``: mean cross-entropy in nats. ``f1``: of each
    class, in their order; 0 where it is neither guessed nor right. ``macro_f1``: their mean. ``mcc``: Matthews'
    correlation, for several classes by Gorodkin; 0 when only one class is guessed or right. ``majority``: the share of
    the most frequent class, which is what guessing it always would give. ``confusion[i][j]``: examples of class i that
    were guessed to be j.
    """

    examples: int
    accuracy: float
    low: float
    high: float
    loss: float
    f1: tuple[float, ...]
    macro_f1: float
    mcc: float
    majority: float
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class Agreement:
    """A model's guesses beside a teacher's. ``same``: share of equal ones. ``kl``: mean KL(teacher || model) in nats.

    ``only_model`` and ``only_teacher``: examples that one of them alone has right; ``p_value``: how likely a difference
    at least as large is when both are equally good (McNemar's exact test, two-sided).
    """

    same: float
    kl: float
    both_right: int
    only_model: int
    only_teacher: int
    p_value: float

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)


def class_figures(logits: NDArray[np.float64], classes: NDArray[np.int64]) -> ClassFigures:
    """Return the figures of ``logits`` [N, C] for the right ``classes`` [N], N >= 1; ties go to the first class."""
    count, size = logits.shape
    guesses = logits.argmax(axis=1)
    confusion = np.zeros((size, size), np.int64)
    np.add.at(confusion, (classes, guesses), 1)
    right, guessed, given = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    f1 = 2.0 * right / np.maximum(guessed + given, 1)
    low, high = interval(int(right.sum()), count)
    return ClassFigures(
        examples=count,
        accuracy=float(right.sum() / count),
        low=low,
        high=high,
        loss=float(-_log_softmax(logits)[np.arange(count), classes].mean()),
        f1=tuple(f1.tolist()),
        macro_f1=float(f1.mean()),
        mcc=_mcc(confusion),
        majority=float(given.max() / count),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def agreement(model: NDArray[np.float64], teacher: NDArray[np.float64], classes: NDArray[np.int64]) -> Agreement:
    """Return how the logits [N, C] of a model agree with a teacher's, and which of them is right where they differ."""
    ours, theirs = model.argmax(axis=1), teacher.argmax(axis=1)
    log_q, log_p = _log_softmax(model), _log_softmax(teacher)
    ours_alone = int(((ours == classes) & (theirs != classes)).sum())
    theirs_alone = int(((ours != classes) & (theirs == classes)).sum())
    return Agreement(
        same=float((ours == theirs).mean()),
        kl=float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()),
        both_right=int(((ours == classes) & (theirs == classes)).sum()),
        only_model=ours_alone,
        only_teacher=theirs_alone,
        p_value=sign_test(ours_alone, theirs_alone),
    )


def interval(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a share of ``right`` among ``count`` >= 1."""
    share, spread = right / count, _Z * _Z / count
    middle = share + spread / 2.0
    half = _Z * math.sqrt(share * (1.0 - share) / count + spread / (4.0 * count))
    return max((middle - half) / (1.0 + spread), 0.0), min((middle + half) / (1.0 + spread), 1.0)


def sign_test(first: int, second: int) -> float:
    """Return the two-sided p-value of ``first`` against ``second`` under a fair coin; 1 when there were no throws."""
    count, fewer = first + second, min(first, second)
    if count == 0:
        return 1.0
    logs = [math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) for k in range(fewer + 1)]
    return min(2.0 * sum(math.exp(each - count * math.log(2.0)) for each in logs), 1.0)


def _mcc(confusion: NDArray[np.int64]) -> float:
    """Gorodkin's R_K of a confusion matrix (Computational Biology and Chemistry 28, 2004); of two classes it is MCC."""
    table = confusion.astype(np.float64)
    count, right = table.sum(), np.trace(table)
    guessed, given = table.sum(axis=0), table.sum(axis=1)
    spread = math.sqrt((count**2 - guessed @ guessed) * (count**2 - given @ given))
    return float((right * count - guessed @ given) / spread) if spread > 0.0 else 0.0


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
