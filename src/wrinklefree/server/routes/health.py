"""Whether the process lives, and whether it takes requests."""

from __future__ import annotations

from fastapi import APIRouter

from wrinklefree.server.errors import draining
from wrinklefree.server.schemas.health import Health
from wrinklefree.server.state import ServerState


def router(state: ServerState) -> APIRouter:
    """Return the routes. While the model is being loaded, `server.run` answers in their place."""
    routes = APIRouter()

    @routes.get("/health/live", response_model=Health)
    async def live() -> dict[str, str]:
        """Say that the process answers: one that does not is to be started again."""
        return {"status": "ok"}

    @routes.get("/health", response_model=Health)
    @routes.get("/health/ready", response_model=Health)
    async def ready() -> dict[str, str]:
        """Say that requests are taken; 503 while the model is being loaded and once the server is stopping."""
        if not state.scheduler.ready:
            raise draining()
        return {"status": "ok"}

    for path, answer in (("/health", ready), ("/health/ready", ready), ("/health/live", live)):  # wget --spider asks so
        routes.add_api_route(path, answer, methods=["HEAD"], include_in_schema=False)
    return routes
