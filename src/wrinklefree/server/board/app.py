"""The board's application: its page, the list of runs, their figures."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wrinklefree.server.board.runs import Run
from wrinklefree.server.errors import ApiError
from wrinklefree.server.static_files import read_static

_HERE = Path(__file__).parent
_SHARED = ("base.css", "dark.css", "icon.svg", "dom.js", "theme.js")
# A page of elsewhere whose name was bent to this machine's own address must not read the figures.
_LOCAL = ["localhost", "127.0.0.1", "[::1]"]


def create_board(runs: list[Run], local: bool = True) -> Starlette:
    """Return the ASGI application that shows ``runs``. ``local``: it listens on this machine's own address only."""
    chat = read_static(_HERE.parent / "page")
    files = {**{name: chat[name] for name in _SHARED}, **read_static(_HERE / "page")}

    async def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    async def file(request: Request) -> Response:
        found = files.get(request.path_params["name"])
        return _refusal(404, "there is no such file of the page") if found is None else found.answer(request)

    async def listing(_: Request) -> Response:
        return JSONResponse({"runs": await asyncio.to_thread(lambda: [run.status() for run in runs])})

    async def figures(request: Request) -> Response:
        number, start = request.path_params["number"], request.query_params.get("from", "0")
        if number >= len(runs):
            return _refusal(404, f"run: found {number}, there are {len(runs)}, counted from 0")
        if not (start.isascii() and start.isdigit() and len(start) < 16):
            return _refusal(400, f"from: found {start[:40]!r}, allowed is a number of bytes")
        return JSONResponse(await asyncio.to_thread(runs[number].figures, int(start)))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/page/{name}", file),
            Route("/runs", listing),
            Route("/runs/{number:int}", figures),
        ],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_LOCAL)] if local else [],
    )


def serve_board(bound: socket.socket, runs: list[Run], local: bool) -> None:
    """Serve the board on a bound socket until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        create_board(runs, local),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[bound])


def _refusal(status: int, message: str) -> Response:
    return JSONResponse(ApiError(status, message).body(), status)
