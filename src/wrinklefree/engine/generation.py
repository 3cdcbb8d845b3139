"""One running generation: an iterator of steps that knows its slot, its text and its figures."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.decoding import Decided
from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.stream import StopFilter

if TYPE_CHECKING:
    from wrinklefree.artifact.tokenizer import StreamDecoder
    from wrinklefree.engine.prompt_scores import PromptScores
    from wrinklefree.engine.together import Seat, Together

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Step:
    """One token.

    ``text``: what became certain with it, often '' (an unfinished character or a possible stop string is held
    back). ``logprob`` (natural logarithm, of the unmodified logits) and ``best`` [(token, logprob), ...] only when
    SamplingParams.logprobs asks for them. ``forwards``: passes through the model so far; several tokens may come from
    the same. ``finish_reason`` is set on the last step only.
    """

    token: int
    text: str
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()
    forwards: int = 0
    finish_reason: FinishReason | None = None


class Answer:
    """Makes steps of what a decoder decided: in order, with text, up to an end token, a stop string or the limit."""

    def __init__(
        self,
        first_position: int,
        limit: int,
        params: SamplingParams,
        end_tokens: frozenset[int],
        decoder: StreamDecoder | None,
    ) -> None:
        """``first_position``: of the first token, behind the prompt; ``limit``: the most tokens."""
        self.finish_reason: FinishReason | None = None
        self.first_position = first_position
        self._next = first_position
        self._left = limit
        self._ends = end_tokens
        self._decoder = decoder
        self._stops = StopFilter(params.stop)
        self._early: dict[int, Decided] = {}  # decided before a token in front of them

    def take(self, decided: list[Decided], forwards: int) -> list[Step]:
        """Return the steps that are certain now; none after the last one."""
        for one in decided:
            self._early[one.position] = one
        steps: list[Step] = []
        while self.finish_reason is None and (following := self._early.pop(self._next, None)) is not None:
            self._next += 1
            self._left -= 1
            steps.append(self._step(following, forwards))
        return steps

    def _step(self, decided: Decided, forwards: int) -> Step:
        token, decoder, stops = decided.token, self._decoder, self._stops
        ended = token in self._ends
        text = "" if ended or decoder is None else stops.push(decoder.push(token))
        if ended or stops.stopped or decided.last:
            self.finish_reason = "stop"
        elif self._left == 0:
            self.finish_reason = "length"
        if self.finish_reason is not None and not stops.stopped and decoder is not None:
            text += stops.push(decoder.flush()) + stops.flush()
            if stops.stopped:
                self.finish_reason = "stop"
        return Step(token, text, decided.logprob, decided.best, forwards, self.finish_reason)


class Generation(Iterator[Step]):
    """The steps of one answer; made by Engine.generate and `Together.add`.

    Nothing is computed before the first step is asked for. The slot is held from then until the last step or
    `close`, which leaving a ``with`` block and garbage collection call too.

    Attributes: ``mode`` (how tokens are decided: ar, block or speculative), ``prompt_tokens`` (count), ``seed``,
    ``tokens`` (ids so far, the end token included), ``text`` (so far), ``finish_reason`` (None while running),
    ``forwards`` (passes through the model; the prompt's own count only where they gave the first tokens),
    ``first_token_seconds``, ``seconds`` (since the first step was asked for).
    """

    def __init__(self, mode: str, prompt_tokens: int, params: SamplingParams, together: Together, seat: Seat) -> None:
        """``params`` must have a seed; ``seat``: the place of this answer in ``together``."""
        assert params.seed is not None
        self.mode = mode
        self.prompt_tokens = prompt_tokens
        self.params = params
        self.seed: int = params.seed
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.forwards = 0
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._first_tokens = 0  # that came at the moment of the first
        self._started: float | None = None
        self._together = together
        self._seat = seat

    def __next__(self) -> Step:
        seat = self._seat
        if self._started is None:
            self._started = time.perf_counter()
        while not seat.ready:
            if seat.left:
                failure, seat.failure = seat.failure, None
                raise StopIteration if failure is None else failure
            self._together.run()
        return self._hand_out(*seat.ready.popleft())

    def ready(self) -> list[Step]:
        """Return the steps that have been computed and not handed out, without computing."""
        found: deque[tuple[Step, float]] = self._seat.ready
        if found and self._started is None:
            self._started = self._seat.entered
        return [self._hand_out(*found.popleft()) for _ in range(len(found))]

    def _hand_out(self, step: Step, moment: float) -> Step:
        assert self._started is not None
        self.seconds = moment - self._started
        if self.first_token_seconds is None:
            self.first_token_seconds = self.seconds
        if self.seconds == self.first_token_seconds:
            self._first_tokens += 1
        self.tokens.append(step.token)
        self.text += step.text
        self.forwards = step.forwards
        self.finish_reason = step.finish_reason
        return step

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt whose states were taken over from earlier prompts; known with the first step."""
        return self._seat.cached

    @property
    def failure(self) -> Exception | None:
        """Why the answer ended without a last step; None for one that runs, has ended well or was closed."""
        return self._seat.failure

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed without the prefill; None before there is a token behind those of the first pass."""
        counted = len(self.tokens) - self._first_tokens
        if self.first_token_seconds is None or counted < 1 or self.seconds <= self.first_token_seconds:
            return None
        return counted / (self.seconds - self.first_token_seconds)

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens of the answer per pass; None before the first."""
        return len(self.tokens) / self.forwards if self.forwards else None

    @property
    def proposed(self) -> int | None:
        """Tokens that were proposed and verified so far; None outside of speculative mode."""
        return getattr(self._seat.decoder, "proposed", None)

    @property
    def accepted(self) -> int | None:
        """Those of them that were accepted."""
        return getattr(self._seat.decoder, "accepted", None)

    @property
    def prompt_scores(self) -> PromptScores | None:
        """What ``params.prompt_logprobs`` asks for; None before the first step is there."""
        return getattr(self._seat.decoder, "scores", None) if self._seat.decoder.forwards else None

    @property
    def embedding(self) -> NDArray[np.float32] | None:
        """The mean of the prompt's hidden states float32 [D] where it was asked for; None before it is there."""
        return getattr(self._seat.decoder, "embedding", None)

    def run(self) -> Generation:
        """Do the remaining steps and return this object."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop early and free the slot; steps that were not handed out are lost."""
        self._seat.ready.clear()
        self._together.leave(self._seat)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_seat"):
            self.close()
