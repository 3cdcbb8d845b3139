"""Log-probabilities of tokens in the two forms of OpenAI."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from wrinklefree.artifact.tokenizer import Tokenizer

_LEAST = -9999.0  # JSON has no infinity


class Scored(Protocol):
    """A token with its natural logarithm of probability, and the most likely ones at its place."""

    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float | None: ...
    @property
    def best(self) -> tuple[tuple[int, float], ...]: ...


class TokenNames:
    """How an answer names tokens: by text, by ``bytes:\\xe2\\x82`` where they are no whole characters, or by id."""

    def __init__(self, tokenizer: Tokenizer | None, by_id: bool) -> None:
        """``by_id``: as ``token_id:5``, which is the only way without a tokenizer."""
        self._tokenizer = tokenizer
        self._by_id = by_id or tokenizer is None

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes the token stands for."""
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def is_special(self, token: int) -> bool:
        """Whether texts leave the token out."""
        return self._tokenizer is not None and token in self._tokenizer.special_ids

    def name(self, token: int) -> str:
        """Return the token's name."""
        if self._by_id:
            return f"token_id:{token}"
        found = self.bytes_of(token)
        try:
            return found.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in found)


def chat_scores(names: TokenNames, steps: Iterable[Scored], top: int) -> dict[str, Any]:
    """Return the ``logprobs`` of a chat choice with the ``top`` most likely tokens of each place."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {"token": names.name(token), "logprob": finite(logprob), "bytes": list(names.bytes_of(token))}

    content = [
        {**entry(step.token, step.logprob), "top_logprobs": [entry(*one) for one in step.best[:top]]} for step in steps
    ]
    return {"content": content, "refusal": None}


class TextScores:
    """The ``logprobs`` of one choice of a text completion, in parts that follow each other.

    ``text_offset`` counts the characters of the choice's text that are complete before the token.
    """

    def __init__(self, names: TokenNames, top: int) -> None:
        self._names = names
        self._top = top
        self._characters = 0
        self._unwritten = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, steps: Sequence[Scored], prompt: Sequence[Scored] = (), unwritten: int = 0) -> dict[str, Any]:
        """Return the entries of the next tokens; one whose probability is not known (a prompt's first) has nulls.

        As with OpenAI the token itself is listed beside the most likely ones. ``prompt``: tokens before the steps whose
        special ones are written in the text; ``unwritten``: bytes of theirs that stand before the text.
        """
        self._unwritten += unwritten
        offsets = [self._advance(step.token, True) for step in prompt]
        offsets += [self._advance(step.token, False) for step in steps]
        entries = [*prompt, *steps]
        return {
            "tokens": [self._names.name(step.token) for step in entries],
            "token_logprobs": [None if step.logprob is None else finite(step.logprob) for step in entries],
            "top_logprobs": [None if step.logprob is None else self._best(step) for step in entries],
            "text_offset": offsets,
        }

    def _advance(self, token: int, special_written: bool) -> int:
        """Return where a token begins, and go behind it."""
        names = self._names
        written = names.bytes_of(token) if special_written or not names.is_special(token) else b""
        dropped = min(self._unwritten, len(written))
        self._unwritten -= dropped
        written = written[dropped:]
        # An unfinished character that this token does not go on with becomes one U+FFFD before it.
        broken = bool(written and self._decoder.getstate()[0] and written[0] & 0xC0 != 0x80)
        begin = self._characters + broken
        self._characters += len(self._decoder.decode(written))
        return begin

    def _best(self, step: Scored) -> dict[str, float]:
        best: dict[str, float] = {}
        for token, logprob in step.best[: self._top]:
            best.setdefault(self._names.name(token), finite(logprob))  # of equal names the more likely one
        best.setdefault(self._names.name(step.token), finite(step.logprob))
        return best


def finite(logprob: float | None) -> float:
    """Return a number that JSON can write."""
    return _LEAST if logprob is None or not math.isfinite(logprob) else logprob
