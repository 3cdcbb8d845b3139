"""How good decoded text is, and how like the text of another way of decoding the same model.

A teacher's perplexity alone praises text that repeats itself, so the shares of different n-grams stand beside it.

Sources: arXiv 1510.03055 (distinct-n); arXiv 1908.04319 (the share of repeated 4-grams of an answer, seq-rep-4).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from wrinklefree.errors import InputError
from wrinklefree.eval.loss import LogitsFunction, token_losses, window_logits
from wrinklefree.eval.text import Window

Tokens = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """Token ids of a prompt and of what was written after it, an end token included."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class TextQuality:
    """Of some answers. ``answers``, ``tokens``: how many were looked at.

    ``distinct_1``, ``distinct_2``, ``distinct_3``: different n-grams divided by n-grams, of all answers together, so
    they fall with the amount of text: compare equal amounts. ``repeated_4``: mean share of an answer's 4-grams that it
    had before; 0 without any repetition. ``longest_run``: of one token after itself.

    By a teacher, None without one: ``teacher_loss`` (nats per token of the answers, after their prompts),
    ``teacher_perplexity``, and ``teacher_first``, the share of tokens that it would have chosen there itself.
    """

    answers: int
    tokens: int
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repeated_4: float
    longest_run: int
    teacher_loss: float | None = None
    teacher_perplexity: float | None = None
    teacher_first: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Likeness:
    """Of two answers to each of some prompts. ``same``: share of the answers that are equal token by token.

    ``prefix``: mean length of the common beginning in tokens; ``prefix_share``: as a share of the longer answer's
    length. ``equal``: share of positions (of the longer answer) with the same token in both.
    """

    same: float
    prefix: float
    prefix_share: float
    equal: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def text_quality(answers: Sequence[Answer], teacher: LogitsFunction | None = None) -> TextQuality:
    """Return how diverse some answers are, and what a teacher with the same vocabulary makes of them.

    Raises: InputError when there are no tokens, or a token is outside the teacher's vocabulary; ArithmeticError when
    the teacher's logits are not finite.
    """
    number = sum(len(answer.tokens) for answer in answers)
    if not number:
        raise InputError("quality: found no token in the answers; there is nothing to measure")
    texts = [answer.tokens for answer in answers]
    found = TextQuality(
        answers=len(answers),
        tokens=number,
        distinct_1=_distinct(texts, 1),
        distinct_2=_distinct(texts, 2),
        distinct_3=_distinct(texts, 3),
        repeated_4=sum(1.0 - _distinct([text], 4) for text in texts) / len(texts),
        longest_run=max(map(_longest_run, texts)),
    )
    if teacher is None:
        return found
    each = [_by_teacher(answer, teacher) for answer in answers if answer.tokens]
    loss, first = (sum(values) / number for values in zip(*each, strict=True))
    if not math.isfinite(loss):
        raise ArithmeticError("quality: the teacher's logits are not finite")
    return replace(found, teacher_loss=loss, teacher_perplexity=math.exp(min(loss, 700.0)), teacher_first=first)


def likeness(answers: Sequence[Answer], reference: Sequence[Answer]) -> Likeness:
    """Return how like the answers to the same prompts are.

    Raises: InputError when there are none, or the prompts differ.
    """
    if not answers or [a.prompt for a in answers] != [r.prompt for r in reference]:
        raise InputError("likeness: the answers must be to the same prompts in the same order, at least one")
    pairs = [(a.tokens, r.tokens) for a, r in zip(answers, reference, strict=True)]
    prefixes = [common_prefix(a, b) for a, b in pairs]
    lengths = [max(len(a), len(b)) for a, b in pairs]
    equal = sum(x == y for a, b in pairs for x, y in zip(a, b, strict=False))
    return Likeness(
        same=sum(a == b for a, b in pairs) / len(pairs),
        prefix=sum(prefixes) / len(pairs),
        prefix_share=sum(p / n if n else 1.0 for p, n in zip(prefixes, lengths, strict=True)) / len(pairs),
        equal=equal / sum(lengths) if sum(lengths) else 1.0,
    )


def common_prefix(a: Tokens, b: Tokens) -> int:
    """Return how many tokens two answers have in common before they first differ."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _distinct(texts: Iterable[Tokens], n: int) -> float:
    """Return the share of different n-grams; 1 where there is none."""
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def _longest_run(text: Tokens) -> int:
    longest = run = 0
    for i, token in enumerate(text):
        run = run + 1 if i and token == text[i - 1] else 1
        longest = max(longest, run)
    return longest


def _by_teacher(answer: Answer, teacher: LogitsFunction) -> tuple[float, int]:
    """Return the sum of the teacher's losses on an answer's tokens, and how many are its own first choice."""
    if not answer.prompt:
        raise InputError("quality: found an empty prompt; the first token of an answer needs one to be predicted by")
    window = Window(np.array([*answer.prompt, *answer.tokens], np.int64), len(answer.prompt))
    rows = window_logits(teacher, window)
    targets = window.tokens[window.scored_from :]
    return float(token_losses(rows, targets).sum()), int((rows.argmax(axis=1) == targets).sum())
