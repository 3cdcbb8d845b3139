"""A teacher behind an OpenAI-compatible server: top-K log-probabilities of whole documents over HTTP.

Request, `POST {url}/completions`, for every document of a batch (the server knows nothing of packing):

    {"model": ..., "prompt": [[id, id, ...], ...], "echo": true, "logprobs": K, "max_tokens": 1, "temperature": 0,
     "return_tokens_as_token_ids": true}

Answer, for each prompt (by ``index``), ``logprobs`` with one entry a token of the prompt, then of the one generated:

    {"tokens": ["token_id:5", ...], "top_logprobs": [null, {"token_id:9": -0.1, ...}, ...]}

or, from servers that have it, the lists ``token_ids`` [T], ``top_token_ids`` [T][K] and ``top_token_logprobs`` [T][K].
Entry t is the distribution of token t given those before it, so it belongs to position t - 1 of `TopKOutput`; the first
is null. Tokens are read by their ids only: two ids may have one text, and some have none that comes back.
"""

from __future__ import annotations

import json
import math
import os
import threading
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from wrinklefree.data.batch import PADDING_DOCUMENT, TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.teachers.base import TeacherError, TopKOutput, refuse_states
from wrinklefree.teachers.cached import row_keys

_PREFIX = "token_id:"
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT_SECONDS = 10.0
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True)
class RemoteServer:
    """``url``: up to and with /v1. ``model``: its name there. ``key_variable``: environment variable of the key.

    ``retries`` after the first attempt, waiting ``backoff_seconds``, then twice that, at most 10 s.
    """

    url: str
    model: str
    top_k: int
    key_variable: str = "OPENAI_API_KEY"
    timeout_seconds: float = 120.0
    retries: int = 4
    backoff_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"teacher.url: found {self.url!r}, needed is http://HOST:PORT/v1")
        if self.top_k < 1 or self.timeout_seconds <= 0.0 or self.retries < 0 or self.backoff_seconds < 0.0:
            raise InputError("teacher: top_k must be at least 1, timeout_seconds above 0, retries 0 or more")


class RemoteTeacher:
    """Asks ahead in ``ahead`` threads, each for one batch; answers do not depend on who asked when.

    ``vocabulary``: ids the student knows; an answer beyond it is an InputError.
    """

    def __init__(
        self, server: RemoteServer, vocabulary: int, ahead: int = 2, say: Callable[[str], None] = print
    ) -> None:
        self.server, self.vocabulary, self.ahead, self.say = server, vocabulary, ahead, say
        self._pool: ThreadPoolExecutor | None = None
        self._pending: OrderedDict[bytes, Future[TopKOutput]] = OrderedDict()
        self._closing = threading.Event()

    @property
    def loaded(self) -> bool:
        return self._pool is not None

    @property
    def prefetches(self) -> bool:
        return True

    def prefetch(self, batches: Sequence[TokenBatch]) -> None:
        keys = {b"".join(row_keys(batch)) for batch in batches}
        for key in [key for key in self._pending if key not in keys]:  # asked ahead, but the run took another way
            self._pending.pop(key).cancel()
        for batch in batches:
            self._start(batch)

    def wait(self, batches: Sequence[TokenBatch]) -> None:
        for batch in batches:
            self._start(batch)
        for batch in batches:
            key = b"".join(row_keys(batch))
            try:
                self._pending[key].result()
            except BaseException:
                self._pending.pop(key, None)
                raise

    def forward(self, batch: TokenBatch, want: frozenset[str]) -> TopKOutput:
        refuse_states("remote", want)
        self.wait([batch])
        answer = self._pending.pop(b"".join(row_keys(batch))).result()
        device = batch.input_ids.device
        return TopKOutput(answer.ids.to(device), answer.log_probs.to(device))

    def release(self) -> None:
        self._closing.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None
        self._pending.clear()

    def _start(self, batch: TokenBatch) -> None:
        if self._pool is None:
            self._closing.clear()
            self._pool = ThreadPoolExecutor(max(self.ahead, 1), thread_name_prefix="teacher")
        key = b"".join(row_keys(batch))
        if key not in self._pending:
            self._pending[key] = self._pool.submit(self._fetch, batch)

    def _fetch(self, batch: TokenBatch) -> TopKOutput:
        rows, length = batch.input_ids.shape
        ids = torch.zeros(rows, length, self.server.top_k, dtype=torch.int32)
        log_probs = torch.zeros(rows, length, self.server.top_k)
        places = _documents(batch)
        prompts = [batch.input_ids[row, start:stop].tolist() for row, start, stop in places]
        if prompts:
            choices = _choices(self._post(self._request(prompts)), len(prompts))
            for (row, start, stop), prompt, choice in zip(places, prompts, choices, strict=True):
                found = parse(choice, prompt, self.server.top_k, self.vocabulary)
                ids[row, start : stop - 1], log_probs[row, start : stop - 1] = found
        return TopKOutput(ids, log_probs)

    def _request(self, prompts: list[list[int]]) -> dict[str, Any]:
        # One token is generated and ignored: some servers refuse 0.
        return {
            "model": self.server.model,
            "prompt": prompts,
            "echo": True,
            "logprobs": self.server.top_k,
            "max_tokens": 1,
            "temperature": 0,
            "return_tokens_as_token_ids": True,
        }

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        server = self.server
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(server.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{server.url.rstrip('/')}/completions", json.dumps(body).encode(), headers)
        seen = ""
        for attempt in range(server.retries + 1):
            if attempt:
                pause = min(server.backoff_seconds * 2.0 ** (attempt - 1), _LONGEST_WAIT_SECONDS)
                self.say(f"WARNING: teacher {server.url}: {seen}; attempt {attempt + 1} of {server.retries + 1}")
                if self._closing.wait(pause):
                    break
            try:
                with urllib.request.urlopen(request, timeout=server.timeout_seconds) as response:
                    answer = json.load(response)
                if isinstance(answer, dict):
                    return answer
                seen = f"answered with a JSON {type(answer).__name__}"
            except urllib.error.HTTPError as error:
                with error:
                    text = error.read(1 << 16).decode("utf-8", "replace")
                if error.code not in _TRY_AGAIN:
                    raise _refused(server, error.code, text) from error
                seen = f"answered {error.code}"
            except (OSError, ValueError) as error:  # not reachable, too slow, cut off, not JSON
                seen = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
        raise TeacherError(
            f"the teacher at {server.url} does not answer ({seen}; {server.retries + 1} attempts); start it again, "
            "then run the same command to resume"
        )


def parse(choice: dict[str, Any], prompt: list[int], top_k: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [T - 1, K] and log-probabilities [T - 1, K] of the tokens after the first of ``prompt``.

    Raises: InputError when the answer names tokens by text, is not of this prompt, or has too few entries.
    """
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        raise InputError("teacher: the server's answer has no logprobs; it must support echo with logprobs")
    try:
        tokens = found["token_ids"] if "token_ids" in found else [_id(name) for name in found["tokens"]]
        if list(tokens[: len(prompt)]) != prompt:
            raise InputError("teacher: the server echoes other tokens than were sent; it must take ids as they are")
        entries = [_entry(found, t, top_k) for t in range(1, len(prompt))]
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(f"teacher: the server's logprobs are incomplete ({type(error).__name__}: {error})") from error
    ids = torch.tensor([[token for token, _ in entry] for entry in entries], dtype=torch.int32).view(-1, top_k)
    log_probs = torch.tensor([[value for _, value in entry] for entry in entries]).view(-1, top_k)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise InputError(
            f"teacher: the server names token {int(ids.max())}, the student has {vocabulary}; another tokenizer?"
        )
    return ids, log_probs


def _entry(found: dict[str, Any], t: int, top_k: int) -> list[tuple[int, float]]:
    """The K best tokens of place t, best first; of equal ones the lower id."""
    if "top_token_ids" in found:
        pairs = list(zip(found["top_token_ids"][t], found["top_token_logprobs"][t], strict=True))
    else:
        pairs = [(_id(name), value) for name, value in found["top_logprobs"][t].items()]
    # -inf may arrive as null; a token that cannot follow teaches nothing that the rest does not.
    known = [(int(token), float(value)) for token, value in pairs if value is not None and math.isfinite(value)]
    # The token that did follow is often listed beside the K best: it is only kept when it is one of them.
    known = sorted(known, key=lambda pair: (-pair[1], pair[0]))[:top_k]
    if len(known) < top_k:
        raise InputError(
            f"teacher: the server gives {len(known)} tokens at position {t}, teacher.top_k is {top_k}; lower it, or "
            "raise the server's limit (vLLM: --max-logprobs)"
        )
    return known


def _id(name: str) -> int:
    if not name.startswith(_PREFIX):
        raise InputError(
            f"teacher: the server names tokens by text ({name!r}), which is ambiguous; it must support "
            "return_tokens_as_token_ids"
        )
    return int(name.removeprefix(_PREFIX))


def _choices(answer: dict[str, Any], number: int) -> list[dict[str, Any]]:
    choices = sorted(answer.get("choices") or [], key=lambda choice: int(choice.get("index", 0)))
    if len(choices) != number:
        raise InputError(f"teacher: the server gives {len(choices)} answers to {number} prompts")
    return choices


def _documents(batch: TokenBatch) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every document with at least one token to predict."""
    found = []
    for row, numbers in enumerate(batch.document_ids.tolist()):
        start = 0
        for stop in range(1, len(numbers) + 1):
            if stop == len(numbers) or numbers[stop] != numbers[start]:
                if numbers[start] != PADDING_DOCUMENT and stop - start > 1:
                    found.append((row, start, stop))
                start = stop
    return found


def _refused(server: RemoteServer, code: int, text: str) -> InputError:
    key = os.environ.get(server.key_variable)
    message = " ".join((text.replace(key, "***") if key else text).split())[:_MESSAGE_CHARACTERS]
    if "logprobs" in message:
        return InputError(
            f"teacher.top_k={server.top_k}: the server refuses so many log-probabilities ({message}); lower it, or "
            "start the server with a higher limit (vLLM: --max-logprobs)"
        )
    if code in (401, 403):
        return InputError(f"teacher: {server.url} answered {code}; set its key in {server.key_variable}")
    return InputError(f"teacher: {server.url} answered {code}: {message}")
