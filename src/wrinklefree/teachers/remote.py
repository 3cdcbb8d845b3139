"""A teacher behind an OpenAI-compatible server: top-K log-probabilities of whole documents over HTTP.

`teachers.completions` has the protocol. Its entry t belongs to position t - 1 of `TopKOutput`.
"""

from __future__ import annotations

import threading
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
from wrinklefree.teachers.completions import Client, Echoed, Refused, ServerError, choices_of, scoring_request


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
        self._client = Client(
            f"the teacher at {server.url}", server.key_variable, server.timeout_seconds, server.retries,
            server.backoff_seconds, say, self._closing,
        )  # fmt: skip

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
            choices = choices_of(self._ask(prompts), len(prompts), "teacher")
            for (row, start, stop), prompt, choice in zip(places, prompts, choices, strict=True):
                found = parse(choice, prompt, self.server.top_k, self.vocabulary)
                ids[row, start : stop - 1], log_probs[row, start : stop - 1] = found
        return TopKOutput(ids, log_probs)

    def _ask(self, prompts: list[list[int]]) -> dict[str, Any]:
        server = self.server
        try:
            body = scoring_request(server.model, prompts, server.top_k)
            return self._client.ask(f"{server.url.rstrip('/')}/completions", body)
        except ServerError as error:
            raise TeacherError(f"{error}; start it again, then run the same command to resume") from error
        except Refused as error:
            if "logprobs" not in error.reason:
                raise
            raise InputError(
                f"teacher.top_k={server.top_k}: the server refuses so many log-probabilities ({error.reason}); lower "
                "it, or start the server with a higher limit (vLLM: --max-logprobs)"
            ) from error


def parse(choice: dict[str, Any], prompt: list[int], top_k: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [T - 1, K] and log-probabilities [T - 1, K] of the tokens after the first of ``prompt``.

    Raises: InputError when the answer names tokens by text, is not of this prompt, or has too few entries.
    """
    echoed = Echoed.read(choice, prompt, "teacher")
    entries = [_entry(echoed, t, top_k) for t in range(1, len(prompt))]
    ids = torch.tensor([[token for token, _ in entry] for entry in entries], dtype=torch.int32).view(-1, top_k)
    log_probs = torch.tensor([[value for _, value in entry] for entry in entries]).view(-1, top_k)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise InputError(
            f"teacher: the server names token {int(ids.max())}, the student has {vocabulary}; another tokenizer?"
        )
    return ids, log_probs


def _entry(echoed: Echoed, t: int, top_k: int) -> list[tuple[int, float]]:
    """The K best tokens of place t; the one that did follow is only kept when it is one of them."""
    known = echoed.best(t)[:top_k]
    if len(known) < top_k:
        raise InputError(
            f"teacher: the server gives {len(known)} tokens at position {t}, teacher.top_k is {top_k}; lower it, or "
            "raise the server's limit (vLLM: --max-logprobs)"
        )
    return known


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
