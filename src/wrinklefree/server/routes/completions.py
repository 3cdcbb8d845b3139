"""POST /v1/completions: the continuation of texts, whole or as it is made."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from wrinklefree.engine import Step
from wrinklefree.server import asking, prompts
from wrinklefree.server.answers import Choice
from wrinklefree.server.document import events
from wrinklefree.server.echo import Echo, echoes
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
        most = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        if most == 0 and not body.echo:
            raise ApiError(400, "max_tokens: found 0, which is allowed with echo only", param="max_tokens")
        params = asking.sampling(body, max(most, 1))
        if body.echo and body.logprobs is not None:
            if body.mode not in (None, "auto", "ar"):
                message = f"mode: found {body.mode!r}, but log-probabilities of prompts need mode ar or auto"
                raise ApiError(400, message, param="mode")
            params = replace(params, prompt_logprobs=body.logprobs)
        asking.check_scores(state, body, many, most)
        echoed = echoes(state, body.prompt, many) if body.echo else []
        kept_to = await asking.constraints(state, body, read_rule(body), len(many))
        tickets = asking.submit(state, request, body, many, params, kept_to)
        choices = [Choice(index, ticket, started, most == 0) for index, ticket in enumerate(tickets)]
        return await answer(request, CompletionReply(state, body, choices, echoed))

    return routes


class CompletionReply(Reply):
    """An answer in the form of text completions."""

    kind = "text_completion"
    chunk_kind = "text_completion"
    id_prefix = "cmpl-"
    nothing = '"text":"","logprobs":null'

    def __init__(
        self, state: ServerState, body: CompletionRequest, choices: Sequence[Choice], echoed: Sequence[Echo]
    ) -> None:
        """``echoed``: of each prompt; none when prompts are not asked for."""
        super().__init__(state, body, choices)
        self._echoes = dict(enumerate(echo for echo in echoed for _ in range(body.n or 1)))
        self._scores = [TextScores(self.names, body.top_scores or 0) for _ in choices] if self.scored else []
        self.echoed_tokens = sum(len(echo.ids) for echo in echoed) * (body.n or 1)

    def piece(self, choice: Choice, text: str, steps: Sequence[Step]) -> str:
        """Return a piece of the text, the first with the prompt."""
        if not steps and choice.finish_reason is None:
            return ""
        text, scores = self._with_echo(choice, text, steps)
        if scores is not None:
            return f'"text":{json_text(text)},"logprobs":{json_text(scores)}'
        return f'"text":{json_text(text)},"logprobs":null' if text else ""

    def choice(self, choice: Choice) -> dict[str, Any]:
        """Return a whole answer."""
        text, scores = self._with_echo(choice, "".join(choice.pieces), choice.steps)
        return {"index": choice.index, "text": text, "logprobs": scores, "finish_reason": choice.finish_reason}

    def _with_echo(self, choice: Choice, text: str, steps: Sequence[Step]) -> tuple[str, dict[str, Any] | None]:
        """Put the prompt before what is handed out first; return the scores too, where they are wanted."""
        echo = self._echoes.pop(choice.index, None)
        if echo is not None:
            text = echo.text + text
        if not self.scored:
            return text, None
        scores = self._scores[choice.index]
        if echo is None:
            return text, scores.take(steps)
        assert choice.prompt_scores is not None
        return text, scores.take(steps, echo.tokens(choice.prompt_scores), echo.unwritten)
