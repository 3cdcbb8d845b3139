"""Agreement of two models of which at least one shows its most likely tokens only: a model behind a server.

The first choices are known, so their agreement and the flips are exact. Of the KL divergence there is a lower bound:
the K tokens that a server lists (of two servers: those that both list) each count for themselves, all others together
as one. Putting outcomes together never raises a divergence.

Source: Cover and Thomas, Elements of Information Theory, theorem 2.7.1 (the log sum inequality).

Shapes: N scored places of a window, K listed tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError
from wrinklefree.eval.loss import AgreementReport, Logits, OnWindow, log_softmax, window_logits
from wrinklefree.eval.scorer import Request, Scorer
from wrinklefree.eval.server_scorer import ServerScorer, TopScores
from wrinklefree.eval.text import EvaluationText

TOP = 20  # what vLLM gives without --max-logprobs, and half of what a request may list elsewhere
_LEAST_REST = (
    1e-6  # float32 probabilities do not add up to 1 more exactly; a larger rest of the student's is a bound too
)


def top_agreement(
    teacher: Scorer, student: Scorer, text: EvaluationText, on_window: OnWindow | None = None, top: int = TOP
) -> AgreementReport:
    """Return how alike two models predict the scored tokens; ``kl`` is a lower bound.

    Raises: InputError when a server lists fewer than ``top`` tokens, or names one that the other model lacks.
    """
    sums, tokens = np.zeros(5), 0
    both = zip(text.windows, _known(teacher, text, top), _known(student, text, top), strict=True)
    for number, (window, theirs, ours) in enumerate(both, start=1):
        targets = window.tokens[window.scored_from :]
        right, also = _first(theirs) == targets, _first(ours) == targets
        same = _first(theirs) == _first(ours)
        sums += [bound(theirs, ours).sum(), same.sum(), (right != also).sum(), right.sum(), also.sum()]
        tokens += len(targets)
        if on_window:
            on_window(number, len(text.windows))
    kl, top1, flips, teacher_accuracy, student_accuracy = (float(value) / tokens for value in sums)
    return AgreementReport(kl, top1, flips, teacher_accuracy, student_accuracy, tokens, top)


def bound(theirs: Logits | TopScores, ours: Logits | TopScores) -> NDArray[np.float64]:
    """Return a lower bound of KL(theirs || ours) at each place, float64 [N]; at least one of them is a `TopScores`."""
    listed = theirs if isinstance(theirs, TopScores) else ours
    assert isinstance(listed, TopScores)
    counted = np.ones(listed.ids.shape, bool)
    if isinstance(theirs, TopScores) and isinstance(ours, TopScores):
        counted = (theirs.ids[:, :, None] == ours.ids[:, None, :]).any(axis=2)
    p, q = (np.where(counted, np.exp(_at(each, listed.ids)), 0.0) for each in (theirs, ours))
    rest, other = 1.0 - p.sum(axis=1), np.maximum(1.0 - q.sum(axis=1), _LEAST_REST)
    apart = np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))
    known = np.where(p > 0.0, p * apart, 0.0).sum(axis=1)
    unknown = np.where(rest > _LEAST_REST, rest * np.log(np.maximum(rest, _LEAST_REST) / other), 0.0)
    return np.asarray(np.maximum(known + unknown, 0.0))


def _at(scores: Logits | TopScores, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log-probabilities of tokens, float64 [N, K]; minus infinity for what is not listed."""
    if isinstance(scores, TopScores):
        found = np.full(ids.shape, -np.inf)
        row, here, there = np.nonzero(ids[:, :, None] == scores.ids[:, None, :])
        found[row, here] = scores.log_probs[row, there]
        return found
    if int(ids.max()) >= scores.shape[1]:
        raise InputError(f"agreement: a server names token {int(ids.max())}, the other model has {scores.shape[1]}; "
                         "only models of one vocabulary can be compared")  # fmt: skip
    return np.asarray(np.take_along_axis(log_softmax(scores), ids, axis=1))


def _first(scores: Logits | TopScores) -> NDArray[np.int64]:
    return scores.ids[:, 0] if isinstance(scores, TopScores) else scores.argmax(axis=1)


def _known(scorer: Scorer, text: EvaluationText, top: int) -> Iterator[Logits | TopScores]:
    if isinstance(scorer, ServerScorer):
        yield from scorer.top([Request(window.tokens, window.scored_from) for window in text.windows], top)
        return
    assert scorer.logits is not None
    for window in text.windows:
        yield window_logits(scorer.logits, window)
