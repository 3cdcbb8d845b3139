"""The one model that is served, as OpenAI's clients list models."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from wrinklefree.server.errors import ApiError
from wrinklefree.server.model_facts import model_facts
from wrinklefree.server.state import ServerState


def router(state: ServerState) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    facts = model_facts(state.engine)

    def entry() -> dict[str, Any]:
        return {
            "id": state.settings.model_id,
            "object": "model",
            "created": state.created,
            "owned_by": "wrinklefree",
            "wrinklefree": facts,
        }

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry()]}

    @routes.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != state.settings.model_id:
            message = f"model: found {name!r:.80}, this server has {state.settings.model_id!r}"
            raise ApiError(404, message, "not_found_error", param="model", code="model_not_found")
        return entry()

    return routes
