"""The page to talk to the model: fixed files, open to everyone; what it asks the API for needs the key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response

from wrinklefree.server.errors import ApiError
from wrinklefree.server.state import ServerState
from wrinklefree.server.static_files import read_static

DIRECTORY = Path(__file__).parents[1] / "page"


def router(state: ServerState) -> APIRouter:
    """Return the routes: `/` and the files it needs under `/page/`."""
    routes = APIRouter(include_in_schema=False)
    files = read_static(DIRECTORY)

    @routes.get("/")
    async def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    @routes.get("/page/{name}")
    async def file(name: str, request: Request) -> Response:
        if name not in files:
            raise ApiError(404, "there is no such file of the page", "not_found_error", code="not_found")
        return files[name].answer(request)

    return routes
