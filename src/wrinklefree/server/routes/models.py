"""GET /v1/models: the one model that is served."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from wrinklefree.server.errors import ApiError
from wrinklefree.server.model_facts import model_facts
from wrinklefree.server.schemas.models import ModelEntry, ModelList
from wrinklefree.server.state import ServerState


def router(state: ServerState) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()
    entry = {
        "id": state.settings.model_id,
        "object": "model",
        "created": state.created,
        "owned_by": "wrinklefree",
        "max_model_len": state.engine.context,
        "wrinklefree": model_facts(state.engine),
    }

    @routes.get("/v1/models", response_model=ModelList)
    async def models() -> dict[str, Any]:
        """List the models: there is one."""
        return {"object": "list", "data": [entry]}

    @routes.get("/v1/models/{model:path}", response_model=ModelEntry)
    async def model(model: str) -> dict[str, Any]:
        """Describe a model; its name may hold slashes."""
        if model != entry["id"]:
            message = f"model: found {model[:200]!r}, this server has {entry['id']!r}"
            raise ApiError(404, message, "not_found_error", "model", "model_not_found")
        return entry

    return routes
