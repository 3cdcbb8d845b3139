"""What the sampler's filters leave, in NumPy, and whether counts agree with probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def filtered(logits: Any, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> Any:
    """The probabilities float64 [V] that the documented order of filters leaves."""
    if temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    scaled = logits.astype(np.float64) / temperature
    order = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    weights = np.exp(scaled - scaled.max())
    kept = order[:top_k] if top_k else order
    if top_p < 1:
        mass = np.cumsum(weights[kept])
        kept = kept[: int(np.searchsorted(mass, top_p * mass[-1])) + 1]
    kept = kept[weights[kept] >= min_p]
    out = np.zeros(len(logits))
    out[kept] = weights[kept] / weights[kept].sum()
    return out


def penalized(
    logits: Any,
    penalty: float,
    seen: Any,
    presence: float = 0.0,
    frequency: float = 0.0,
    answer: Any = (),
    bias: Any = (),
) -> Any:
    """Logits float32 [V] after the repetition penalty for the tokens ``seen``, the presence and frequency penalties for
    the tokens ``answer`` and the ``bias`` [(token, number), ...], in this order."""
    out = logits.astype(np.float32).copy()
    for token in set(seen):
        out[token] = out[token] / np.float32(penalty) if out[token] > 0 else out[token] * np.float32(penalty)
    for token in set(answer):
        out[token] -= np.float32(list(answer).count(token)) * np.float32(frequency) + np.float32(presence)
    for token, number in bias:
        out[token] += np.float32(number)
    return out


def chi_square_chance(counts: Any, probabilities: Any) -> float:
    """The chance that counts [n] of draws from ``probabilities`` [n] differ from them as much as these do, or more.

    0 where something impossible was counted. Outcomes of which fewer than five are expected are taken together, as
    Pearson's test asks for.
    """
    expected = probabilities * counts.sum()
    if (counts[probabilities == 0] > 0).any():
        return 0.0
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return chi_square_tail(statistic, len(counts) - 1)


def chi_square_tail(statistic: float, freedom: int) -> float:
    """P(X >= statistic) of a chi-square distribution: the closed sums for whole and half-whole shape parameters."""
    if freedom == 0:
        return 1.0 if statistic < 1e-9 else 0.0
    half = statistic / 2
    if freedom % 2 == 0:
        powers = [i * math.log(half or 1e-300) - math.lgamma(i + 1) for i in range(freedom // 2)]
        rest = 0.0
    else:
        powers = [(i - 0.5) * math.log(half or 1e-300) - math.lgamma(i + 0.5) for i in range(1, freedom // 2 + 1)]
        rest = math.erfc(math.sqrt(half))
    return min(1.0, rest + sum(math.exp(power - half) for power in powers))
