"""GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from wrinklefree.server.state import ServerState


def router(state: ServerState) -> APIRouter:
    """Return the route."""
    routes = APIRouter()

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Give the server's metrics in Prometheus's text format, or OpenMetrics' when that is asked for."""
        text, content_type = state.metrics.text(request.headers.get("accept", ""))
        return Response(text, headers={"Content-Type": content_type})

    return routes
