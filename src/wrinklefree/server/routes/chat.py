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
from wrinklefree.server.structured import read_rule
from wrinklefree.server.token_scores import chat_scores


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
        ids = await prompts.conversation(state, body.messages)
        most = body.max_completion_tokens or body.max_tokens or state.engine.context
        params = asking.sampling(body, most)
        kept_to = await asking.constraints(state, body, read_rule(body), 1)
        tickets = asking.submit(state, request, body, [ids], params, kept_to)
        choices = [Choice(index, ticket, started) for index, ticket in enumerate(tickets)]
        return await answer(request, ChatReply(state, body, choices))

    return routes


class ChatReply(Reply):
    """An answer in the form of chat completions."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    id_prefix = "chatcmpl-"
    nothing = '"delta":{}'

    def first(self) -> str | None:
        """Return the role, which comes before the text."""
        return '"delta":{"role":"assistant","content":""}'

    def piece(self, choice: Choice, text: str, steps: Sequence[Step]) -> str:
        """Return a delta."""
        if self.scored and steps:
            return f'"delta":{{"content":{json_text(text)}}},"logprobs":{json_text(self._scores(steps))}'
        return f'"delta":{{"content":{json_text(text)}}}' if text else ""

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a whole message."""
        message = {"role": "assistant", "content": "".join(choice.pieces), "refusal": None}
        scores = self._scores(choice.steps) if self.scored else None
        return {"index": choice.index, "message": message, "logprobs": scores, "finish_reason": choice.finish_reason}

    def _scores(self, steps: Sequence[Step]) -> dict[str, Any]:
        return chat_scores(self.names, steps, self.body.top_scores or 0)
