"""POST /v1/embeddings: the mean of a text's hidden states, computed beside the answers of others."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import Response
from numpy.typing import NDArray

from wrinklefree.engine import DecodingSettings, greedy
from wrinklefree.engine.embedding import normalised, prepare_embedding
from wrinklefree.server import asking, prompts
from wrinklefree.server.errors import ApiError
from wrinklefree.server.replies import json_text
from wrinklefree.server.schemas.embeddings import EmbeddingReply, EmbeddingRequest
from wrinklefree.server.sse import unless_gone
from wrinklefree.server.state import ServerState
from wrinklefree.server.work import Ticket, Work

_LOOK_AGAIN_SECONDS = 0.02


def router(state: ServerState) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.post("/v1/embeddings", responses={200: {"model": EmbeddingReply}})
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        """Give the vector of each text."""
        asking.check_model(state, body, body.model)
        size = state.engine.hidden_size
        if body.dimensions not in (None, size):
            message = f"dimensions: found {body.dimensions}, this model's vectors have {size}; leave it out"
            raise ApiError(400, message, param="dimensions")
        many = await prompts.texts(state, body.input, "input")
        batch = _Batch(state, asking.client_of(request))
        if not await unless_gone(request.receive, batch.tickets, batch.compute(many)):
            return Response(status_code=499)  # nobody reads it
        text = await asyncio.to_thread(_written, state, body, many, batch.vectors)
        return Response(text, media_type="application/json")

    return routes


class _Batch:
    """The inputs of one request, as many at a time as there are slots, so that they do not fill the queue."""

    def __init__(self, state: ServerState, client: str) -> None:
        self.tickets: list[Ticket] = []
        self.vectors: list[NDArray[np.float32]] = []
        self._state = state
        self._client = client

    async def compute(self, many: Sequence[NDArray[np.int32]]) -> None:
        """Fill ``vectors``. Raises: ApiError, InputError."""
        free = asyncio.Semaphore(self._state.settings.slots)
        tasks = [asyncio.create_task(self._one(ids, free)) for ids in many]
        try:
            self.vectors = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, ids: NDArray[np.int32], free: asyncio.Semaphore) -> NDArray[np.float32]:
        scheduler = self._state.scheduler
        async with free:
            # The first is refused by a full queue; the work done so far is not thrown away for a later one.
            while self.tickets and not scheduler.stopping and scheduler.waiting >= self._state.settings.queue:
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            work = Work(ids, greedy(1), DecodingSettings(), self._client, prepare=lambda to: prepare_embedding(to, ids))
            ticket = scheduler.submit(work)
            self.tickets.append(ticket)
            found = [event.embedding async for event in ticket]
        (vector,) = [one for one in found if one is not None]
        return vector


def _written(
    state: ServerState,
    body: EmbeddingRequest,
    many: Sequence[NDArray[np.int32]],
    vectors: Sequence[NDArray[np.float32]],
) -> str:
    def vector(found: NDArray[np.float32]) -> list[float] | str:
        given = found if body.normalize is False else normalised(found)
        if body.encoding_format == "base64":
            return base64.b64encode(given.astype("<f4").tobytes()).decode()
        return given.tolist()

    tokens = sum(len(ids) for ids in many)
    answer: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector(found)} for index, found in enumerate(vectors)
        ],
        "model": state.settings.model_id,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return json_text(answer)
