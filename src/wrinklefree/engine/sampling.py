"""How the next token is chosen and when a generation ends."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from wrinklefree.errors import InputError

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 1024
MAX_LOGPROBS = 100
MAX_BIASED_TOKENS = 1024


@dataclass(frozen=True)
class SamplingParams:
    """The parameters of one generation; every value is checked when the object is made.

    ``max_tokens`` counts sampled tokens, an end token included. ``temperature`` 0 takes the most likely token.
    ``top_k`` 0 means all. ``repetition_penalty`` divides the logits of tokens of the prompt and the answer;
    ``presence_penalty`` is subtracted from those of tokens of the answer, ``frequency_penalty`` each time they occur
    there; ``logit_bias``, a mapping or pairs of token and number (kept as pairs in rising order), is added to those of
    its tokens. They apply in this order, then temperature, top_k, top_p, min_p. ``seed`` None draws one; the generation
    says which. ``stop`` strings end the text before them; ``stop_tokens`` end it like the model's own end tokens, which
    ``ignore_eos`` switches off. ``logprobs``: None, or how many of the most likely tokens to list at each step, of the
    logits as the model gives them. ``prompt_logprobs``: the same for each token of the prompt (`PromptScores`).

    Raises: InputError naming the parameter, what was found and what is allowed.
    """

    max_tokens: int = 256
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_tokens: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_integer("max_tokens", self.max_tokens, 1, 1 << 24)
        _check_number("temperature", self.temperature, 0.0, 100.0)
        _check_integer("top_k", self.top_k, 0, (1 << 31) - 1)
        _check_number("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0:
            raise InputError("top_p: found 0, allowed is a number above 0 and at most 1")
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._normalise_bias()
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, (1 << 64) - 1)
        if self.logprobs is not None:
            _check_integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        self._normalise_stops()

    def _normalise_bias(self) -> None:
        pairs = dict(self.logit_bias)
        if len(pairs) > MAX_BIASED_TOKENS:
            raise InputError(f"logit_bias: found {len(pairs)} tokens, at most {MAX_BIASED_TOKENS} are allowed")
        for token, bias in pairs.items():
            _check_integer("logit_bias", token, 0, (1 << 31) - 1)
            _check_number("logit_bias", bias, -100.0, 100.0)
        object.__setattr__(self, "logit_bias", tuple(sorted(pairs.items())))

    def _normalise_stops(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stop) > MAX_STOP_STRINGS:
            raise InputError(f"stop: found {len(stop)} strings, at most {MAX_STOP_STRINGS} are allowed")
        for text in stop:
            if not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_CHARACTERS:
                raise InputError(
                    f"stop: found {text!r:.80}, a string of 1 to {MAX_STOP_CHARACTERS} characters is needed"
                )
        object.__setattr__(self, "stop", stop)
        for token in self.stop_tokens:
            _check_integer("stop_tokens", token, 0, (1 << 31) - 1)
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))

    @property
    def moves_logits(self) -> bool:
        """Whether penalties or biases can change which token is the most likely one."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)

    def with_seed(self) -> SamplingParams:
        """Return the same parameters with a seed: the given one, or one drawn from the operating system."""
        if self.seed is not None:
            return self
        return replace(self, seed=int.from_bytes(os.urandom(4), "little"))


def greedy(max_tokens: int) -> SamplingParams:
    """Return parameters that take the most likely token each time."""
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, top_p=1.0, seed=0)


def _check_integer(name: str, found: object, least: int, most: int) -> None:
    if not isinstance(found, int) or isinstance(found, bool) or not least <= found <= most:
        raise InputError(f"{name}: found {found!r:.80}, allowed is an integer from {least} to {most}")


def _check_number(name: str, found: object, least: float, most: float) -> None:
    number = isinstance(found, int | float) and not isinstance(found, bool)
    if not number or not math.isfinite(found) or not least <= found <= most:  # type: ignore[arg-type,operator]
        raise InputError(f"{name}: found {found!r:.80}, allowed is a number from {least} to {most}")
