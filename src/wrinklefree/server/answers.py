"""What becomes of the events of one answer: text, counts and the figures of the ``wrinklefree`` object."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from wrinklefree.engine import Step
from wrinklefree.engine.prompt_scores import PromptScores
from wrinklefree.server.work import Event, Ticket


@dataclass(slots=True, eq=False)
class Choice:
    """One answer as far as it has come.

    ``started``: the moment of the request, `time.perf_counter`. ``silent``: no token was asked for, the one that the
    engine makes is left out.
    """

    index: int
    ticket: Ticket
    started: float
    silent: bool = False
    pieces: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)  # only where their scores are wanted
    tokens: int = 0
    finish_reason: str | None = None
    first: float | None = None
    last: float = 0.0
    first_tokens: int = 0
    prompt_scores: PromptScores | None = None

    def take(self, event: Event) -> tuple[Step, ...]:
        """Note an event; return its steps."""
        if event.scores is not None:
            self.prompt_scores = event.scores
        if not event.steps:
            return ()
        self.last = time.perf_counter()
        if self.first is None:
            self.first, self.first_tokens = self.last, len(event.steps)
        if self.silent:
            self.finish_reason = "length"
            return ()
        self.tokens += len(event.steps)
        self.finish_reason = event.steps[-1].finish_reason
        return event.steps

    def figures(self) -> dict[str, Any]:
        """Return how the answer was made: the content of the ``wrinklefree`` object."""
        forwards, span = self.ticket.forwards, self.last - (self.first or 0.0)
        behind = self.tokens - self.first_tokens
        return {
            "mode": self.ticket.mode,
            "seed": self.ticket.seed,
            "forwards": forwards,
            "tokens_per_forward": round(self.tokens / forwards, 3) if forwards else None,
            "tokens_per_second": round(behind / span, 2) if behind and span > 0 else None,
            "time_to_first_token_ms": None if self.first is None else round((self.first - self.started) * 1000, 2),
        }


def text_of(steps: Sequence[Step]) -> str:
    """Return the text of several steps."""
    return steps[0].text if len(steps) == 1 else "".join(step.text for step in steps)


def usage(choices: Sequence[Choice], n: int) -> dict[str, Any]:
    """Return OpenAI's counts: a prompt once, however many answers it has (``n``, beside each other)."""
    prompts = choices[::n]
    prompt, answer = sum(one.ticket.prompt_tokens for one in prompts), sum(one.tokens for one in choices)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {"cached_tokens": sum(one.ticket.cached_tokens for one in prompts)},
    }


def figures(choices: Sequence[Choice]) -> dict[str, Any]:
    """Return the ``wrinklefree`` object of a whole answer; of several, with a list ``choices``."""
    if len(choices) == 1:
        return choices[0].figures()
    return {"choices": [{"index": one.index, **one.figures()} for one in choices]}
