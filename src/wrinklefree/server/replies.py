"""Both kinds of completion as JSON: a whole object, or chunks of a stream written with little work for each."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from wrinklefree.engine import Step
from wrinklefree.server.answers import Choice, figures, text_of, usage
from wrinklefree.server.schemas.fields import Generating
from wrinklefree.server.sse import EventStream, each, event, unless_gone
from wrinklefree.server.state import ServerState
from wrinklefree.server.token_scores import TokenNames
from wrinklefree.server.watching import passes
from wrinklefree.server.work import Event
from wrinklefree.version import __version__

_HEAVY_SCORES = 20_000  # take about 20 ms

Out = Callable[[bytes], Awaitable[None]]


class Reply(ABC):
    """The form of one request's answers; a subclass says what a choice looks like."""

    kind: str  # of a whole answer
    chunk_kind: str
    id_prefix: str
    nothing: str  # fields of a chunk without text

    def __init__(self, state: ServerState, body: Generating, choices: Sequence[Choice]) -> None:
        """``choices``: n for each prompt, beside each other."""
        self.state = state
        self.body = body
        self.choices = choices
        self.scored = body.top_scores is not None
        self.echoed_tokens = 0  # of all prompts that the answer begins with
        tokenizer = state.engine.tokenizer if state.engine.has_tokenizer else None
        self.names = TokenNames(tokenizer, bool(body.return_tokens_as_token_ids))
        self._head = {
            "id": self.id_prefix + uuid.uuid4().hex,
            "object": self.kind,
            "created": int(time.time()),
            "model": state.settings.model_id,
            "system_fingerprint": f"wrinklefree-{__version__}",
        }
        options = body.stream_options
        self._counts = bool(options is not None and options.include_usage)
        self._open = json.dumps({**self._head, "object": self.chunk_kind}, separators=(",", ":"))[:-1]
        self._usage_null = ',"usage":null' if self._counts else ""

    def first(self) -> str | None:
        """Return JSON of the fields of a chunk before any text; None for no such chunk."""
        return None

    @abstractmethod
    def piece(self, choice: Choice, text: str, steps: Sequence[Step]) -> str:
        """Return JSON of the fields of a chunk with a piece of text and its steps, '' for none."""

    @abstractmethod
    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a choice of a whole answer."""

    def chunk(self, index: int, fields: str, finish: str | None = None, extension: str = "") -> bytes:
        """Return a server-sent event of one choice."""
        reason = "null" if finish is None else f'"{finish}"'
        return (
            f'data: {self._open},"choices":[{{"index":{index},{fields},"finish_reason":{reason}}}]'
            f"{self._usage_null}{extension}}}\n\n"
        ).encode()

    async def stream(self, out: Out) -> None:
        """Write all chunks."""
        begun: set[int] = set()

        async def take(choice: Choice, given: Event) -> None:
            steps = choice.take(given)
            data = b""
            is_first = choice.index not in begun
            if is_first:
                begun.add(choice.index)
                first = self.first()
                data = b"" if first is None else self.chunk(choice.index, first)
            watched = passes(self.state, choice.ticket.prompt_tokens, given.passes) if given.passes else None
            text = text_of(steps)
            if is_first and self._is_heavy(self.echoed_tokens):
                fields = await asyncio.to_thread(self.piece, choice, text, steps)
            else:
                fields = self.piece(choice, text, steps)
            ended = choice.finish_reason
            if watched is not None or fields or ended is not None:
                data += self._piece(choice, fields, watched)
            if data:
                await out(data)

        await each(self.choices, take)
        if self._counts:
            await out(event({**self._head, "object": self.chunk_kind, "choices": [], "usage": self._usage()}))

    async def whole(self) -> bytes:
        """Return the whole answer as JSON."""

        async def take(choice: Choice, given: Event) -> None:
            steps = choice.take(given)
            choice.pieces.append(text_of(steps))
            if self.scored:
                choice.steps.extend(steps)

        await each(self.choices, take)
        heavy = self._is_heavy(self.echoed_tokens + sum(len(choice.steps) for choice in self.choices))
        return await asyncio.to_thread(self._object) if heavy else self._object()

    def _is_heavy(self, tokens: int) -> bool:
        """Whether so many scores would be written that the other answers had to wait."""
        return self.scored and tokens * ((self.body.top_scores or 0) + 1) > _HEAVY_SCORES

    def _object(self) -> bytes:
        chosen = [self.choice(choice) for choice in self.choices]
        found = {**self._head, "choices": chosen, "usage": self._usage(), "wrinklefree": figures(self.choices)}
        return json_text(found).encode()

    def _piece(self, choice: Choice, fields: str, watched: list[Any] | None) -> bytes:
        extension: dict[str, Any] = {} if watched is None else {"passes": watched}
        if choice.finish_reason is not None:
            extension |= choice.figures()
        written = f',"wrinklefree":{json_text(extension)}' if extension else ""
        return self.chunk(choice.index, fields or self.nothing, choice.finish_reason, written)

    def _usage(self) -> dict[str, Any]:
        return usage(self.choices, self.body.n or 1)


async def answer(request: Request, reply: Reply) -> Response:
    """Return the response with a request's answers; they are cancelled when the client goes."""
    tickets = [choice.ticket for choice in reply.choices]
    if reply.body.stream:
        return EventStream(tickets, reply.stream, reply.state.settings.keep_alive_seconds)
    found: list[bytes] = []

    async def work() -> None:
        found.append(await reply.whole())

    if not await unless_gone(request.receive, tickets, work()):
        return Response(status_code=499)  # nobody reads it
    return Response(found[0], media_type="application/json")


def json_text(value: Any) -> str:
    """Return compact JSON with text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
