"""POST /v1/chat/completions: the next message of a conversation, whole or as it is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from wrinklefree.engine import Step
from wrinklefree.server import asking, prompts
from wrinklefree.server.answers import Choice
from wrinklefree.server.document import events
from wrinklefree.server.errors import ApiError
from wrinklefree.server.replies import Reply, answer, json_text
from wrinklefree.server.schemas.answers import ChatAnswer, ChatChunk
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.state import ServerState
from wrinklefree.server.token_scores import chat_scores
from wrinklefree.server.tool_calls import CallReader, message_of
from wrinklefree.server.tools import read_tools


def router(state: ServerState) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions", response_model=ChatAnswer, responses=events(ChatChunk))
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Continue a conversation."""
        started = time.perf_counter()
        asking.check_body(state, body)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs true", param="top_logprobs")
        use = read_tools(state, body)
        ids = await prompts.conversation(state, body.messages, use.rendered)
        most = state.engine.context if body.max_tokens is None else body.max_tokens
        most = most if body.max_completion_tokens is None else body.max_completion_tokens
        if most == 0:
            raise ApiError(400, "max_tokens: found 0, at least 1 is needed", param="max_tokens")
        params = asking.sampling(body, most)
        asking.check_scores(state, body, [ids], most)
        kept_to = await asking.constraints(state, body, use.rule, 1)
        tickets = asking.submit(state, request, body, [ids], params, kept_to)
        choices = [Choice(index, ticket, started) for index, ticket in enumerate(tickets)]
        return await answer(request, ChatReply(state, body, choices, use.names))

    return routes


class ChatReply(Reply):
    """An answer in the form of chat completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    nothing = '"delta":{}'

    def __init__(
        self, state: ServerState, body: ChatRequest, choices: Sequence[Choice], functions: frozenset[str] = frozenset()
    ) -> None:
        """``functions``: those whose calls are taken out of the text."""
        super().__init__(state, body, choices)
        self._readers = [CallReader(functions) for _ in choices] if functions else []

    def first(self) -> str | None:
        """Return the role, which comes before the text."""
        return '"delta":{"role":"assistant","content":""}'

    def piece(self, choice: Choice, text: str, steps: Sequence[Step]) -> str:
        """Return a delta."""
        if self._readers:
            delta = json_text(self._read(choice, text))
        else:
            delta = f'{{"content":{json_text(text)}}}' if text or (self.scored and steps) else "{}"
        if self.scored and steps:
            return f'"delta":{delta},"logprobs":{json_text(self._scores(steps))}'
        return f'"delta":{delta}' if delta != "{}" else ""

    def _read(self, choice: Choice, text: str) -> dict[str, Any]:
        """Return the delta of a further piece of text that may hold calls; the last one ends the choice by them."""
        reader = self._readers[choice.index]
        delta = reader.push(text)
        if choice.finish_reason is None:
            return delta
        for name, found in reader.finish().items():
            delta[name] = delta[name] + found if name in delta else found
        if reader.calls and choice.finish_reason == "stop":
            choice.finish_reason = "tool_calls"
        return delta

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a whole message."""
        text = "".join(choice.pieces)
        if self._readers:
            self._read(choice, text)
            message = message_of(self._readers[choice.index])
        else:
            message = {"role": "assistant", "content": text, "refusal": None}
        scores = self._scores(choice.steps) if self.scored else None
        return {"index": choice.index, "message": message, "logprobs": scores, "finish_reason": choice.finish_reason}

    def _scores(self, steps: Sequence[Step]) -> dict[str, Any]:
        return chat_scores(self.names, steps, self.body.top_scores or 0)
