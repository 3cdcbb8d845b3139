"""What every way to run a model offers to an evaluation: torch, the engine, and a server behind HTTP alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wrinklefree.eval.loss import LogitsFunction


@dataclass(frozen=True)
class Request:
    """``tokens`` int64 [T]; those from index ``first`` >= 1 on are scored, each given all before it."""

    tokens: NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class Scores:
    """Of the N scored tokens: ``losses`` float64 [N] in nats, ``greedy`` bool [N]: the model's own first choice."""

    losses: NDArray[np.float64]
    greedy: NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """How texts are continued. ``stop``: texts that end one, not part of it. Temperature 0 is greedy."""

    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Scorer(Protocol):
    """A model ready to be measured. ``runs_on``: "torch", "engine" or "server". ``context``: most tokens at once.

    ``logits`` is None where only log-probabilities are to be had (a server).
    """

    name: str
    runs_on: str
    context: int | None
    logits: LogitsFunction | None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, special tokens in it recognised, none added."""
        ...

    def first_token(self) -> int:
        """Return the token behind which a text begins when nothing precedes it: BOS, or where there is none, EOS."""
        ...

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the prompt of a conversation by the model's own template. Raises: InputError when it has none."""
        ...

    def score(self, requests: Sequence[Request]) -> Iterator[Scores]:
        """Yield the scores of each request, in order."""
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[str]:
        """Yield the continuation of each prompt, in order."""
        ...
