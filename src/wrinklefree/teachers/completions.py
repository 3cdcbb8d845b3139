"""What asks an OpenAI-compatible server for the probabilities of a prompt's tokens; needs no torch.

Request, `POST {url}/completions`, for several prompts (the server knows nothing of packing):

    {"model": ..., "prompt": [[id, id, ...], ...], "echo": true, "logprobs": K, "max_tokens": 1, "temperature": 0,
     "return_tokens_as_token_ids": true}

Answer, for each prompt (by ``index``), ``logprobs`` with one entry a token of the prompt, then of the one generated:

    {"tokens": ["token_id:5", ...], "token_logprobs": [null, -1.5, ...], "top_logprobs": [null, {"token_id:9": -0.1,
     ...}, ...]}

or, from servers that have it, the lists ``token_ids`` [T], ``top_token_ids`` [T][K] and ``top_token_logprobs`` [T][K].
Entry t is the distribution of token t given those before it; the first is null. Tokens are read by their ids only: two
ids may have one text, and some have none that comes back.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from wrinklefree.errors import InputError

_PREFIX = "token_id:"
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT_SECONDS = 10.0
_MESSAGE_CHARACTERS = 300


class ServerError(RuntimeError):
    """A server does not answer; the message says what was seen."""


class Refused(InputError):
    """A server answered that it will not do it. ``code``: of HTTP; ``reason``: its words, without the key."""

    def __init__(self, message: str, code: int, reason: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Client:
    """Asks with retries. ``who``: what messages begin with. ``key_variable``: environment variable of the key.

    ``retries`` after the first attempt, waiting ``backoff_seconds``, then twice that, at most 10 s, unless ``closing``
    is set. ``say`` hears of each.
    """

    who: str
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    retries: int = 4
    backoff_seconds: float = 0.5
    say: Callable[[str], None] = print
    closing: threading.Event = field(default_factory=threading.Event)

    def ask(self, url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the JSON object that a server answers: to a POST of ``body``, or to a GET without one.

        Raises: Refused for an answer that trying again would not change, ServerError when there is none.
        """
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        seen = ""
        for attempt in range(self.retries + 1):
            if attempt:
                pause = min(self.backoff_seconds * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                self.say(f"WARNING: {self.who}: {seen}; attempt {attempt + 1} of {self.retries + 1}")
                if self.closing.wait(pause):
                    break
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as response:
                    answer = json.load(response)
                if isinstance(answer, dict):
                    return answer
                seen = f"answered with a JSON {type(answer).__name__}"
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read(1 << 16).decode("utf-8", "replace")
                if error.code not in _TRY_AGAIN:
                    raise self._refused(error.code, text, key) from error
                seen = f"answered {error.code}"
            except (OSError, ValueError, http.client.HTTPException) as error:  # not reachable, slow, cut off, not JSON
                seen = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
        raise ServerError(f"{self.who} does not answer ({seen}; {self.retries + 1} attempts)")

    def _refused(self, code: int, text: str, key: str | None) -> Refused:
        reason = " ".join((text.replace(key, "***") if key else text).split())[:_MESSAGE_CHARACTERS]
        if code in (401, 403):
            return Refused(f"{self.who} answered {code}; set its key in {self.key_variable}", code, reason)
        return Refused(f"{self.who} answered {code}: {reason}", code, reason)


def scoring_request(model: str, prompts: Sequence[Sequence[int]], count: int, max_tokens: int = 1) -> dict[str, Any]:
    """Return the body that asks for the ``count`` most likely tokens at each place of prompts.

    ``max_tokens``: what is generated is ignored, but some servers refuse 0.
    """
    return {
        "model": model,
        "prompt": [list(prompt) for prompt in prompts],
        "echo": True,
        "logprobs": count,
        "max_tokens": max_tokens,
        "temperature": 0,
        "return_tokens_as_token_ids": True,
    }


def choices_of(answer: dict[str, Any], number: int, who: str) -> list[dict[str, Any]]:
    """Return the choices of an answer to ``number`` prompts, in order. Raises: InputError for another number."""
    choices = sorted(answer.get("choices") or [], key=lambda choice: int(choice.get("index", 0)))
    if len(choices) != number:
        raise InputError(f"{who}: the server gives {len(choices)} answers to {number} prompts")
    return choices


@dataclass(frozen=True)
class Echoed:
    """What a server says of the tokens of one prompt. ``logprobs``: the object of its choice."""

    prompt: Sequence[int]
    logprobs: dict[str, Any]
    who: str

    @classmethod
    def read(cls, choice: dict[str, Any], prompt: Sequence[int], who: str) -> Echoed:
        """Check that a choice is about this prompt.

        Raises: InputError when it has no log-probabilities, names tokens by text, or echoes another prompt.
        """
        found = choice.get("logprobs")
        if not isinstance(found, dict):
            raise InputError(f"{who}: the server's answer has no logprobs; it must support echo with logprobs")
        try:
            tokens = found["token_ids"] if "token_ids" in found else [_id(name, who) for name in found["tokens"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise _incomplete(who, error) from error
        if list(tokens[: len(prompt)]) != list(prompt):
            raise InputError(f"{who}: the server echoes other tokens than were sent; it must take ids as they are")
        return cls(prompt, found, who)

    def best(self, place: int) -> list[tuple[int, float]]:
        """Return (token, log-probability) of what is listed at a place, best first; of equal ones the lower id.

        The token that did follow is often listed beside the best ones. Raises: InputError when there is no list.
        """
        found = self.logprobs
        try:
            if "top_token_ids" in found:
                pairs = list(zip(found["top_token_ids"][place], found["top_token_logprobs"][place], strict=True))
            else:
                pairs = [(_id(name, self.who), value) for name, value in found["top_logprobs"][place].items()]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise _incomplete(self.who, error) from error
        # -inf may arrive as null: a token that cannot follow.
        known = [(int(token), float(value)) for token, value in pairs if value is not None and math.isfinite(value)]
        return sorted(known, key=lambda pair: (-pair[1], pair[0]))

    def logprob(self, place: int) -> float:
        """Return the log-probability of the prompt's token at a place. Raises: InputError when it is not there."""
        try:
            return float(self.logprobs["token_logprobs"][place])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _incomplete(self.who, error) from error


def _incomplete(who: str, error: Exception) -> InputError:
    return InputError(f"{who}: the server's logprobs are incomplete ({type(error).__name__}: {error})")


def _id(name: str, who: str) -> int:
    if not name.startswith(_PREFIX):
        raise InputError(
            f"{who}: the server names tokens by text ({name!r}), which is ambiguous; it must support "
            "return_tokens_as_token_ids"
        )
    return int(name.removeprefix(_PREFIX))
