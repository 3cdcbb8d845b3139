"""The scorer of a model behind an OpenAI-compatible server: log-probabilities of prompts over HTTP, no torch.

`http://HOST:PORT[/v1][#MODEL]`. What is scored needs `/v1/completions` with echo and log-probabilities (ours, vLLM);
texts become tokens at `/tokenize` (ours, vLLM, llama-server). llama-server gives no probabilities of a prompt: it can
continue texts only.

Sources: vLLM's OpenAI-compatible server (`/tokenize`, `/tokenizer_info`, ``max_model_len``); llama.cpp's
tools/server/README (`/tokenize`, `/props`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.chat_template import ChatTemplate
from wrinklefree.errors import InputError, unknown_name
from wrinklefree.eval.loss import LogitsFunction
from wrinklefree.eval.scorer import Diffusion, Request, Scores, Settings, checked
from wrinklefree.teachers.completions import Client, Echoed, Refused, choices_of, scoring_request

KEY_VARIABLE = "OPENAI_API_KEY"
_PROMPTS, _TOKENS = 32, 4096  # of one request
_AHEAD = 2  # requests under way at a time
_TIMEOUT_SECONDS = 600.0  # of a request: a slow machine may need minutes for its tokens
_REMEMBERED_CHARACTERS = 4096  # texts that tasks repeat; documents are asked for again
_IMPOSSIBLE = -9999.0  # what stands for minus infinity in JSON
_LLAMA_SERVER = "llamacpp"
_T = TypeVar("_T")


@dataclass(frozen=True)
class TopScores:
    """Of N places: ``ids`` int64 [N, K] and ``log_probs`` float64 [N, K], the most likely tokens, best first."""

    ids: NDArray[np.int64]
    log_probs: NDArray[np.float64]


class ServerScorer:
    """A `Scorer` over HTTP. ``model``: the name that the server has for it."""

    runs_on = "server"
    logits: LogitsFunction | None = None
    diffusion: Diffusion | None = None

    def __init__(self, url: str, say: Callable[[str], None] = print) -> None:
        """Ask the server what it has. ``say`` hears of every attempt that failed.

        Raises: InputError when the address or the model's name is wrong, or the server refuses what is needed;
        `ServerError` when it does not answer.
        """
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.netloc:
            raise InputError(f"{url}: needed is http://HOST:PORT, with #MODEL where the server has several")
        if address.username is not None:  # it would stand in every result
            raise InputError(f"{address.scheme}://{address.hostname}: leave the name and password out of the address; "
                             f"a key is read from {KEY_VARIABLE}")  # fmt: skip
        self.name = url
        self._root = f"{address.scheme}://{address.netloc}{address.path.rstrip('/').removesuffix('/v1')}"
        self._client = Client(self._root, KEY_VARIABLE, _TIMEOUT_SECONDS, say=say)
        entry = self._entry(address.fragment)
        self.model: str = entry["id"]
        self._owner = str(entry.get("owned_by") or "not named")
        self._is_llama = self._owner == _LLAMA_SERVER
        self._info = self._tokenizer_info()
        self._encoded: dict[str, list[int]] = {}
        room = entry.get("max_model_len") or self._info.get("n_ctx")
        self._max_tokens, self.refusal = (0, "llama-server has none") if self._is_llama else self._probe()
        # The last token of a request takes a place too, and so does what some servers insist on generating.
        self.context: int | None = None if room is None else int(room) - 1 - self._max_tokens
        self.adds_bos = self._adds_bos()

    def describe(self) -> dict[str, Any]:
        """See `Scorer.describe`; how the server runs the model, it does not say."""
        return {"model": self.model, "server": self._owner, "context": self.context}

    def encode(self, text: str) -> list[int]:
        """See `Scorer.encode`."""
        if not text:
            return []
        if len(text) > _REMEMBERED_CHARACTERS:
            return self._tokenize(text, False)
        if text not in self._encoded:
            self._encoded[text] = self._tokenize(text, False)
        return list(self._encoded[text])

    def first_token(self) -> int:
        """See `Scorer.first_token`."""
        for name in ("bos_token", "eos_token"):
            text = _text_of(self._info.get(name))
            ids = self.encode(text) if text else []
            if len(ids) == 1:
                return ids[0]
        if self.adds_bos:
            return self._tokenize("a", True)[0]
        raise InputError(f"{self.name}: the server does not say which token begins a text (/tokenizer_info; vLLM: "
                         "--enable-tokenizer-info-endpoint)")  # fmt: skip

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """See `Scorer.chat`; the template is rendered here."""
        source = self._info.get("chat_template")
        if not isinstance(source, str):
            raise InputError(f"{self.name}: the server gives no chat template (/tokenizer_info; vLLM: "
                             "--enable-tokenizer-info-endpoint); evaluate with plain prompts")  # fmt: skip
        special = {name: text for name, value in self._info.items() if (text := _text_of(value)) and "_token" in name}
        return ChatTemplate(source).render(messages, add_generation_prompt=True, tools=None, variables=special)

    def score(self, requests: Sequence[Request]) -> Iterator[Scores]:
        """See `Scorer.score`; the server's prefix cache, where it has one, computes a common context once."""
        return (_scores(echoed, request) for echoed, request in self._echoed(requests, 1))

    def top(self, requests: Sequence[Request], count: int) -> Iterator[TopScores]:
        """Yield the ``count`` most likely tokens at the place of each scored token. Raises: as `score`."""
        return (_top(echoed, request, count) for echoed, request in self._echoed(requests, count))

    def generate(self, prompts: Sequence[Sequence[int]], settings: Settings) -> Iterator[str]:
        """See `Scorer.generate`; a diffusion model decodes as its server has it by default."""
        fixed = {"model": self.model, "max_tokens": settings.max_tokens, "temperature": settings.temperature,
                 "top_p": settings.top_p, "seed": settings.seed, "stop": list(settings.stop) or None}  # fmt: skip

        def ask(part: Sequence[Sequence[int]]) -> list[str]:
            given = [list(prompt) for prompt in part]
            answer = self._post("/v1/completions", {**fixed, "prompt": given[0] if self._is_llama else given})
            return [str(choice["text"]) for choice in choices_of(answer, len(part), self.name)]

        parts = _parts(prompts, lambda prompt: len(prompt) + settings.max_tokens, 1 if self._is_llama else _PROMPTS)
        for texts in self._in_order(parts, ask):
            yield from texts

    def _echoed(self, requests: Sequence[Request], count: int) -> Iterator[tuple[Echoed, Request]]:
        if self.refusal:
            raise InputError(
                f"{self.name}: the server gives no log-probabilities of a prompt (echo with logprobs: {self.refusal}); "
                "use wf serve or vLLM, or give the model itself instead of its server"
            )
        for request in requests:
            checked(self, request)
        return self._ask_echoed(requests, count)

    def _ask_echoed(self, requests: Sequence[Request], count: int) -> Iterator[tuple[Echoed, Request]]:
        def ask(part: Sequence[Request]) -> list[tuple[Echoed, Request]]:
            prompts = [request.tokens.tolist() for request in part]
            body = scoring_request(self.model, prompts, count, self._max_tokens)
            choices = choices_of(self._post("/v1/completions", body), len(part), self.name)
            found = [Echoed.read(choice, prompt, self.name) for choice, prompt in zip(choices, prompts, strict=True)]
            return list(zip(found, part, strict=True))

        for pairs in self._in_order(_parts(requests, lambda request: len(request.tokens), _PROMPTS), ask):
            yield from pairs

    def _in_order(self, parts: Iterator[list[Any]], ask: Callable[[list[Any]], _T]) -> Iterator[_T]:
        """Yield the answers in order, a few requests being under way."""
        pool = ThreadPoolExecutor(_AHEAD, thread_name_prefix="scorer")
        pending: deque[Future[_T]] = deque()
        try:
            for part in parts:
                pending.append(pool.submit(ask, part))
                if len(pending) > _AHEAD:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # nobody waits for answers that nobody wants

    def _probe(self) -> tuple[int, str]:
        """Return the fewest tokens that a server generates behind a scored prompt, and why it scores none."""
        reason = ""
        for max_tokens in (0, 1):
            try:
                answer = self._post("/v1/completions", scoring_request(self.model, [[1, 2]], 1, max_tokens))
                Echoed.read(choices_of(answer, 1, self.name)[0], [1, 2], self.name).logprob(1)
                return max_tokens, ""
            except Refused as error:
                if error.code in (401, 403):
                    raise
                reason = error.reason
            except InputError as error:
                reason = str(error)
        return 1, reason

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._client.ask(self._root + path, body)

    def _entry(self, wanted: str) -> dict[str, Any]:
        try:
            found = self._client.ask(f"{self._root}/v1/models").get("data") or []
        except Refused as error:
            if error.code in (401, 403):
                raise
            raise InputError(f"{self.name}: is no OpenAI-compatible server ({error})") from error
        entries = {entry["id"]: entry for entry in found if isinstance(entry, dict) and "id" in entry}
        if not wanted and len(entries) == 1:
            return dict(next(iter(entries.values())))
        if not wanted:
            raise InputError(f"{self.name}: the server has {len(entries)} models; add #MODEL "
                             f"({', '.join(sorted(entries)) or 'none is listed'})")  # fmt: skip
        if wanted not in entries:
            raise unknown_name(f"model of {self._root}", wanted, entries)
        return dict(entries[wanted])

    def _tokenizer_info(self) -> dict[str, Any]:
        """Return the special tokens and the template; nothing where a server has no such route."""
        try:
            found = self._client.ask(f"{self._root}{'/props' if self._is_llama else '/tokenizer_info'}")
        except Refused:
            return {}
        return {**found, **found.get("default_generation_settings", {})} if self._is_llama else found

    def _adds_bos(self) -> bool:
        said = self._info.get("add_bos_token")
        if isinstance(said, bool):
            return said
        plain, special = self._tokenize("a", False), self._tokenize("a", True)
        return len(special) > len(plain) and special[1 : 1 + len(plain)] == plain

    def _tokenize(self, text: str, special: bool) -> list[int]:
        body: dict[str, Any] = {"model": self.model, "prompt": text, "add_special_tokens": special}
        if self._is_llama:
            body = {"content": text, "add_special": special, "parse_special": True}
        try:
            ids = self._post("/tokenize", body).get("tokens")
        except Refused as error:
            raise InputError(
                f"{self.name}: the server turns no text into tokens ({error}); it must have /tokenize"
            ) from error
        if not isinstance(ids, list) or not ids:
            raise InputError(f"{self.name}: /tokenize gives no tokens for {text[:20]!r}")
        return [int(token) for token in ids]


def _text_of(token: Any) -> str | None:
    """Return the text of a special token, which may be written as an object."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _scores(echoed: Echoed, request: Request) -> Scores:
    places = range(request.first, len(request.tokens))
    values = np.array([echoed.logprob(place) for place in places])
    first = np.array([(echoed.best(place) or [(-1, 0.0)])[0][0] for place in places])
    return Scores(-np.where(values <= _IMPOSSIBLE, -np.inf, values), first == request.tokens[request.first :])


def _top(echoed: Echoed, request: Request, count: int) -> TopScores:
    found = [echoed.best(place)[:count] for place in range(request.first, len(request.tokens))]
    if any(len(each) < count for each in found):
        least = min(map(len, found))
        raise InputError(f"{echoed.who}: the server lists {least} tokens at a place, needed are {count} (vLLM: "
                         "--max-logprobs)")  # fmt: skip
    pairs = np.array(found, np.float64)
    return TopScores(pairs[..., 0].astype(np.int64), pairs[..., 1])


def _parts(items: Sequence[_T], size: Callable[[_T], int], most: int) -> Iterator[list[_T]]:
    """Yield neighbours that go into one request."""
    part: list[_T] = []
    tokens = 0
    for item in items:
        if part and (len(part) == most or tokens + size(item) > _TOKENS):
            yield part
            part, tokens = [], 0
        part.append(item)
        tokens += size(item)
    if part:
        yield part
