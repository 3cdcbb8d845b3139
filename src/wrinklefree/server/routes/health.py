"""Whether the process lives, and whether it takes requests."""

from __future__ import annotations

from fastapi import APIRouter

from wrinklefree.server.state import ServerState


def router(state: ServerState) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return routes
