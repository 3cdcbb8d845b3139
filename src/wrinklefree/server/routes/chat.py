"""POST /v1/chat/completions: the next message of a conversation, whole or as it is made."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from wrinklefree.server import asking, prompts
from wrinklefree.server.answers import Choice
from wrinklefree.server.replies import Reply, answer, json_text
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.state import ServerState
from wrinklefree.server.work import Event


def router(state: ServerState) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/chat/completions")
    async def chat_completions(request: Request, body: ChatRequest) -> Response:
        """Continue a conversation."""
        started = time.perf_counter()
        asking.check_body(state, body)
        ids = await prompts.conversation(state, body.messages)
        most = body.max_completion_tokens or body.max_tokens or state.engine.context
        params = asking.sampling(body, most, None)
        tickets = asking.submit(state, request, body, [ids], params)
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

    def piece(self, text: str, given: Event) -> str:
        """Return a delta."""
        return f'"delta":{{"content":{json_text(text)}}}' if text else ""

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a whole message."""
        message = {"role": "assistant", "content": "".join(choice.pieces), "refusal": None}
        return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}
