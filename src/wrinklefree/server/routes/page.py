"""The page to talk to the model: fixed files, open to everyone; what it asks the API for needs the key."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from wrinklefree.server.errors import ApiError
from wrinklefree.server.state import ServerState
from wrinklefree.server.static_files import read_static

DIRECTORY = Path(__file__).parents[1] / "page"
_MISSING = ApiError(404, "there is no such file of the page", "not_found_error", code="not_found")


def router(state: ServerState) -> APIRouter:
    """Return the routes: `/` and the files it needs under `/page/`."""
    return APIRouter(routes=page_routes(), include_in_schema=False)


def page_routes() -> list[BaseRoute]:
    """Return the same routes for an application that has no model yet: the page waits for it."""
    files = read_static(DIRECTORY)

    async def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        return JSONResponse(_MISSING.body(), _MISSING.status) if found is None else found.answer(request)

    return [Route("/", page, include_in_schema=False), Route("/page/{name}", file, include_in_schema=False)]
