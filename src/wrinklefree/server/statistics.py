"""What a server has done since its start: counters and distributions, for its metrics and for honest refusals."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

FIRST_TOKEN_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
BETWEEN_TOKENS_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
REQUEST_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKENS_PER_FORWARD = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 16.0)


class Distribution:
    """Numbers counted by size. ``counts``: up to each of ``bounds``, then the larger ones; ``total``: the sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """``bounds``: rising upper bounds."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a number, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass
class Statistics:
    """Of answers, from the scheduler; seconds and tokens.

    ``received``: asked for, the refused ones included. ``refused``: by code (queue_full, stopping). ``ended``: of those
    taken in, by how: stop, length, embedded, cancelled_waiting, cancelled_prefill, cancelled_decoding, timeout,
    slow_reader, stopping, failed. ``passes``: through the model, for all answers together. ``cached_tokens``: of the
    ``prompt_tokens``, those that were not computed again. ``service_seconds``: the mean time that an answer held its
    slot, recent ones counting more; None before the first.
    """

    received: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    pass_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    forwards: int = 0
    service_seconds: float | None = None
    queue_seconds: Distribution = field(default_factory=lambda: Distribution(FIRST_TOKEN_SECONDS))
    first_token_seconds: Distribution = field(default_factory=lambda: Distribution(FIRST_TOKEN_SECONDS))
    between_tokens_seconds: Distribution = field(default_factory=lambda: Distribution(BETWEEN_TOKENS_SECONDS))
    request_seconds: Distribution = field(default_factory=lambda: Distribution(REQUEST_SECONDS))
    tokens_per_forward: Distribution = field(default_factory=lambda: Distribution(TOKENS_PER_FORWARD))

    def served(self, seconds: float) -> None:
        """Learn how long an answer held its slot."""
        before = self.service_seconds
        self.service_seconds = seconds if before is None else before + 0.1 * (seconds - before)

    def retry_after(self, waiting: int, slots: int) -> int:
        """Return whole seconds in which so many waiting answers are worked off, as recent ones were: 1 to 600."""
        seconds = (self.service_seconds or 1.0) * waiting / slots
        return max(1, min(600, round(seconds + 0.5)))
