"""POST /v1/completions: the continuation of texts, whole or as it is made."""

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
from wrinklefree.server.schemas.answers import TextAnswer, TextChunk
from wrinklefree.server.schemas.completions import CompletionRequest
from wrinklefree.server.state import ServerState
from wrinklefree.server.structured import read_rule
from wrinklefree.server.token_scores import TextScores

DEFAULT_TOKENS = 16  # OpenAI's


def router(state: ServerState) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/completions", response_model=TextAnswer, responses=events(TextChunk))
    async def completions(request: Request, body: CompletionRequest) -> Response:
        """Continue texts."""
        started = time.perf_counter()
        asking.check_body(state, body)
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(400, f"best_of: found {body.best_of}, allowed is the value of n", param="best_of")
        many = await prompts.texts(state, body.prompt)
        params = asking.sampling(body, DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens)
        kept_to = await asking.constraints(state, body, read_rule(body), len(many))
        tickets = asking.submit(state, request, body, many, params, kept_to)
        choices = [Choice(index, ticket, started) for index, ticket in enumerate(tickets)]
        return await answer(request, CompletionReply(state, body, choices))

    return routes


class CompletionReply(Reply):
    """An answer in the form of text completions."""

    kind = "text_completion"
    chunk_kind = "text_completion"
    id_prefix = "cmpl-"
    nothing = '"text":"","logprobs":null'

    def __init__(self, state: ServerState, body: CompletionRequest, choices: Sequence[Choice]) -> None:
        """As `Reply`."""
        super().__init__(state, body, choices)
        self._scores = [TextScores(self.names, body.top_scores or 0) for _ in choices] if self.scored else []

    def piece(self, choice: Choice, text: str, steps: Sequence[Step]) -> str:
        """Return a piece of the text."""
        if self.scored and steps:
            return f'"text":{json_text(text)},"logprobs":{json_text(self._scores[choice.index].take(steps))}'
        return f'"text":{json_text(text)},"logprobs":null' if text else ""

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        text = "".join(choice.pieces)
        scores = self._scores[choice.index].take(choice.steps) if self.scored else None
        return {"index": choice.index, "text": text, "logprobs": scores, "finish_reason": choice.finish_reason}
