"""What every way to run a model offers to an evaluation: torch, the engine, and a server behind HTTP alike.

`eval.opening.open_scorer` gives one for any model's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError
from wrinklefree.eval.loss import LogitsFunction

if TYPE_CHECKING:
    from wrinklefree.artifact.tokenizer import Tokenizer
    from wrinklefree.eval.diffusion import MaskedLosses


@dataclass(frozen=True)
class Request:
    """``tokens`` int64 [T]; those from index ``first`` >= 1 on are scored, each given all before it."""

    tokens: NDArray[np.int64]
    first: int


@dataclass(frozen=True)
class Scores:
    """Of the N scored tokens: ``losses`` float64 [N] in nats, ``greedy`` bool [N]: the model's own first choice.

    Of equally likely tokens the lowest id is the first choice.
    """

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


@dataclass(frozen=True)
class Diffusion:
    """Of a diffusion model: ``dlm`` its marker as in config.json, ``masked`` the losses of masked tokens.

    ``never``: tokens it never writes (MASK; padding, unless it is an end token).
    """

    dlm: dict[str, Any]
    masked: MaskedLosses
    never: tuple[int, ...]

    @property
    def no_ar(self) -> str:
        """Why the model predicts no token from those before it alone, or ''."""
        if not self.dlm["token_shift"]:
            return "without token shift no state predicts the token after it"
        if self.dlm["clean_half"] != "causal":
            return "its finished blocks were trained to see all of themselves, so it has no next-token distribution"
        return ""


class Scorer(Protocol):
    """A model ready to be measured. ``runs_on``: "torch", "engine" or "server". ``context``: most tokens at once.

    A request of ``context`` + 1 tokens fits, since nothing is predicted from its last. ``logits`` is None where only
    log-probabilities are to be had (a server). ``adds_bos``: whether the model's own texts begin with BOS.
    """

    name: str
    runs_on: str
    context: int | None
    logits: LogitsFunction | None
    adds_bos: bool
    diffusion: Diffusion | None

    def describe(self) -> dict[str, Any]:
        """Return how the model runs (threads, number types, kernels, ...), for a result's document."""
        ...

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
        """Yield the scores of each request, in order. What neighbours have in common may be computed once.

        Raises: InputError for a request that `checked` refuses.
        """
        ...

    def generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[str]:
        """Yield the continuation of each prompt, in order, as text without special tokens.

        Raises: InputError for a prompt that leaves no room in the context.
        """
        ...


def document_ids(scorer: Scorer, text: str) -> list[int]:
    """Return the ids of a whole text as the model's configuration wants them: behind BOS, exactly once, or as it is."""
    ids = scorer.encode(text)
    first = scorer.first_token() if scorer.adds_bos else None
    return ids if first is None or ids[:1] == [first] else [first, *ids]


def checked(scorer: Scorer, request: Request, vocabulary: int | None = None) -> Request:
    """Return a request that can be scored.

    Raises: InputError when nothing is scored, nothing precedes it, it is longer than the context and one token, or a
    token is outside of a known ``vocabulary``.
    """
    total = len(request.tokens)
    if not 1 <= request.first < total:
        raise InputError(
            f"request: of {total} tokens those from {request.first} on are asked for; allowed is 1 to {total - 1}"
        )
    if scorer.context is not None and total > scorer.context + 1:
        raise InputError(f"request: found {total} tokens, {scorer.name} has a context of {scorer.context}; cut it")
    low, high = int(request.tokens.min()), int(request.tokens.max())
    if low < 0 or (vocabulary is not None and high >= vocabulary):
        wrong = low if low < 0 else high
        raise InputError(f"request: found token {wrong}, {scorer.name} has tokens 0 to {(vocabulary or 0) - 1}")
    return request


class WithTokenizer:
    """The methods of a `Scorer` that a tokenizer at hand answers."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.adds_bos: bool = tokenizer.adds_bos

    def encode(self, text: str) -> list[int]:
        """See `Scorer.encode`."""
        return self.tokenizer.encode(text, bos=False)

    def first_token(self) -> int:
        """See `Scorer.first_token`."""
        if self.tokenizer.bos_id is not None:
            return self.tokenizer.bos_id
        own = self.tokenizer.special_tokens.get("eos_token")
        found = None if own is None else self.tokenizer.token_id(own)
        if found is None and not self.tokenizer.eos_ids:
            raise InputError("tokenizer: has neither a beginning-of-sequence nor an end token to begin a text with")
        return self.tokenizer.eos_ids[0] if found is None else found

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Scorer.chat`."""
        return self.tokenizer.apply_chat(messages)
