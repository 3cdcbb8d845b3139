"""What a model makes of held-out text: its loss, its agreement with the teacher, the bound of decoding by blocks.

Standard errors are over documents (a ratio estimate), which are what could have been others.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from held_text import HeldText

from wrinklefree.eval.diffusion import bound
from wrinklefree.eval.loss import Logits, LogitsFunction, agreement, ratio_error, without_tokens
from wrinklefree.eval.scorer import Scorer


def losses(scorer: Scorer, text: HeldText) -> dict[str, Any]:
    """Return the loss in nats per token and what follows from it, ``sums``: of each document's losses.

    Raises: ArithmeticError when a loss is not finite.
    """
    sums, first = np.zeros(len(text.texts)), 0
    for document, scores in zip(text.documents, scorer.score(text.requests), strict=True):
        sums[document] += scores.losses.sum()
        first += int(scores.greedy.sum())
    tokens = sum(text.counts)
    loss = float(sums.sum()) / tokens
    if not math.isfinite(loss):
        raise ArithmeticError(f"{scorer.name}: the loss on held-out {text.kind} is not finite")
    return {
        "loss": loss, "standard_error": ratio_error(sums.tolist(), text.counts), "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) * text.num_tokens / text.num_bytes, "top1": first / tokens,
        "tokens": tokens, "documents": len(text.texts), "window": text.window, "runs_on": scorer.runs_on,
        "how": scorer.describe(), "sums": sums.tolist(), "counts": text.counts,
    }  # fmt: skip


def agreements(teacher: LogitsFunction, student: Scorer, text: HeldText) -> dict[str, Any]:
    """Return KL(teacher || student) in nats and how often both rank the same token first, with standard errors."""
    assert student.logits is not None
    comparable = without_tokens(teacher, student.diffusion.never if student.diffusion else ())
    found = [agreement(comparable, student.logits, text.of(number)) for number in range(len(text.texts))]
    counts = [each.tokens for each in found]
    value: dict[str, Any] = {"tokens": sum(counts), "documents": len(counts), "window": text.window}
    for name in ("kl", "top1", "flips"):
        sums = [getattr(each, name) * each.tokens for each in found]
        value |= {name: sum(sums) / sum(counts), f"{name}_error": ratio_error(sums, counts)}
    return value


def block_bound(scorer: Scorer, text: HeldText, samples: int) -> dict[str, Any] | None:
    """Return the bound of decoding by blocks, or None of a model that was not trained for diffusion."""
    if scorer.diffusion is None:
        return None
    found = bound(scorer.diffusion.masked, text.of(), scorer.diffusion.dlm["block_size"], samples)
    return found.to_json() | {"runs_on": scorer.runs_on, "documents": len(text.texts)}


def remembered(logits: LogitsFunction) -> LogitsFunction:
    """Return a logits function that computes each window once: several students are compared with one teacher."""
    known: dict[bytes, Logits] = {}

    def function(tokens: np.ndarray) -> Logits:
        key = tokens.tobytes()
        if key not in known:
            out = logits(tokens)
            known[key] = out if isinstance(out, np.ndarray) else np.concatenate([piece.copy() for piece in out])
        return known[key]

    return function


def paired(student: dict[str, Any], teacher: dict[str, Any]) -> tuple[float, float | None]:
    """Return how much more loss a model has than the teacher on the same documents, and its standard error.

    Raises: ValueError when the two are not of the same documents.
    """
    if student["counts"] != teacher["counts"]:
        raise ValueError("the two losses are of different text")
    apart = [a - b for a, b in zip(student["sums"], teacher["sums"], strict=True)]
    return sum(apart) / sum(student["counts"]), ratio_error(apart, student["counts"])
