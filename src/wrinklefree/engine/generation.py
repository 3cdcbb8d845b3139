"""One running generation: an iterator of steps that knows its slot, its text and its figures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.sampling import SamplingParams
from wrinklefree.engine.stream import StopFilter

if TYPE_CHECKING:
    from wrinklefree.artifact.tokenizer import StreamDecoder

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Step:
    """One sampled token.

    ``text``: what became certain with it, often '' (an unfinished character or a possible stop string is held
    back). ``logprob`` (natural logarithm, of the unmodified logits) and ``best`` [(token, logprob), ...] only when
    SamplingParams.logprobs asks for them. ``forwards``: passes through the model so far. ``finish_reason`` is set on
    the last step only.
    """

    token: int
    text: str
    logprob: float | None = None
    best: tuple[tuple[int, float], ...] = ()
    forwards: int = 0
    finish_reason: FinishReason | None = None


class Generation(Iterator[Step]):
    """The steps of one answer; made by Engine.generate.

    Nothing is computed before the first step is asked for. The slot is held from then until the last step or
    `close`, which leaving a ``with`` block and garbage collection call too.

    Attributes: ``prompt_tokens`` (count), ``seed``, ``tokens`` (ids so far, the end token included), ``text`` (so
    far), ``finish_reason`` (None while running), ``forwards`` (passes through the model),
    ``first_token_seconds``, ``seconds`` (since the first step was asked for).
    """

    def __init__(self, prompt_tokens: int, params: SamplingParams, steps: Iterator[Step]) -> None:
        """``params`` must have a seed; ``steps`` does the work."""
        assert params.seed is not None
        self.prompt_tokens = prompt_tokens
        self.params = params
        self.seed: int = params.seed
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.forwards = 0
        self.first_token_seconds: float | None = None
        self.seconds = 0.0
        self._started: float | None = None
        self._steps = steps

    def __next__(self) -> Step:
        if self._started is None:
            self._started = time.perf_counter()
        step = next(self._steps)
        self.seconds = time.perf_counter() - self._started
        if self.first_token_seconds is None:
            self.first_token_seconds = self.seconds
        self.tokens.append(step.token)
        self.text += step.text
        self.forwards = step.forwards
        self.finish_reason = step.finish_reason
        if step.finish_reason is not None:
            self.close()
        return step

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed without the prefill; None before the second token."""
        if self.first_token_seconds is None or len(self.tokens) < 2 or self.seconds <= self.first_token_seconds:
            return None
        return (len(self.tokens) - 1) / (self.seconds - self.first_token_seconds)

    def run(self) -> Generation:
        """Do the remaining steps and return this object."""
        for _ in self:
            pass
        return self

    def close(self) -> None:
        """Stop early and free the slot."""
        closing = getattr(self._steps, "close", None)
        if closing is not None:
            closing()

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def decode_steps(
    native: Any,
    slot: int,
    prompt: NDArray[np.int32],
    params: SamplingParams,
    end_tokens: frozenset[int],
    decoder: StreamDecoder | None,
) -> Iterator[Step]:
    """Yield the steps of an answer to ``prompt`` (int32 [T]) in an empty ``slot`` of the model ``native.model``."""
    model, sampler = native.model, native.sampler
    logits = np.empty(model.vocab_size, np.float32)
    sampler.accept(prompt)
    stops = StopFilter(params.stop)
    pending = prompt
    forwards = 0
    room = model.context - len(prompt) + 1  # the last token needs no position of its own
    limit = min(params.max_tokens, room)
    for count in range(1, limit + 1):
        forwards += _prefill(model, slot, pending, logits)
        token, logprob, best = sampler.sample(logits, -1 if params.logprobs is None else params.logprobs)
        pending = np.array([token], np.int32)
        sampler.accept(pending)
        ended = token in end_tokens
        text = "" if ended or decoder is None else stops.push(decoder.push(token))
        reason: FinishReason | None = None
        if ended or stops.stopped:
            reason = "stop"
        elif count == limit:
            reason = "length"
        if reason is not None and not stops.stopped and decoder is not None:
            text += stops.push(decoder.flush()) + stops.flush()
            reason = "stop" if stops.stopped else reason
        yield Step(
            token,
            text,
            logprob if params.logprobs is not None else None,
            tuple(best),
            forwards,
            reason,
        )
        if reason is not None:
            return


PREFILL_TOKENS = 256  # between two chances for Ctrl-C


def _prefill(model: Any, slot: int, tokens: NDArray[np.int32], logits: NDArray[np.float32]) -> int:
    """Append tokens to a slot, the logits of the last into ``logits`` [V]; return the number of passes."""
    starts = range(0, len(tokens), PREFILL_TOKENS)
    for start in starts:
        piece = tokens[start : start + PREFILL_TOKENS]
        last = start + PREFILL_TOKENS >= len(tokens)
        model.forward(slot, piece, logits if last else None)
    return len(starts)
