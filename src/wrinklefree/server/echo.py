"""The prompt as part of the answer, with the probabilities of its tokens where they were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wrinklefree.engine.prompt_scores import PromptScores
from wrinklefree.server.state import ServerState


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt; ``logprob`` and ``best`` as in `engine.Step`, None and none for the first."""

    token: int
    logprob: float | None
    best: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Echo:
    """``text``: of the prompt, as it was given or as its ids ``ids`` int32 [T] read, special tokens by name.

    ``unwritten``: bytes of the tokens before the text: of a token that the tokenizer put first, of a space.
    """

    text: str
    ids: NDArray[np.int32]
    unwritten: int

    def tokens(self, scores: PromptScores) -> list[PromptToken]:
        """Return the prompt's tokens with what is known of each."""
        names, logprobs = self.ids.tolist(), scores.logprobs.tolist()
        best = zip(scores.best.tolist(), scores.best_logprobs.tolist(), strict=True)
        return [
            PromptToken(token, None if math.isnan(logprob) else logprob, tuple(zip(*pair, strict=True)))
            for token, logprob, pair in zip(names, logprobs, best, strict=True)
        ]


def echoes(state: ServerState, prompt: str | Sequence[object], many: Sequence[NDArray[np.int32]]) -> list[Echo]:
    """Return the echo of each prompt; ``prompt`` as the request has it, ``many`` its ids."""
    given = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
    return [_echo(state, one, ids) for one, ids in zip(given, many, strict=True)]


def _echo(state: ServerState, given: object, ids: NDArray[np.int32]) -> Echo:
    if not state.engine.has_tokenizer:
        return Echo("", ids, 0)
    tokenizer = state.engine.tokenizer
    text = given if isinstance(given, str) else tokenizer.decode(ids.tolist(), skip_special=False)
    # Looking at the first tokens is enough: what is not of the text stands before it.
    begin = b"".join(tokenizer.token_bytes(token) for token in ids[:4].tolist())
    text_begin = text.encode()[: len(begin)]
    unwritten = next((n for n in range(len(begin)) if text_begin.startswith(begin[n:])), 0) if begin else 0
    return Echo(text, ids, unwritten)
