"""The application: routes, error objects, the life of the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from wrinklefree.engine import Engine
from wrinklefree.errors import InputError
from wrinklefree.server.errors import ApiError
from wrinklefree.server.routes import chat, completions, health, models, page
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.state import ServerState
from wrinklefree.version import __version__

# Each module has `router(state)`; a further route is a module and its name here.
ROUTES = (health, chat, completions, models, page)


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """Return the ASGI application that serves ``engine``, which has ``settings.slots`` slots and no other user."""
    scheduler = Scheduler(engine, settings)
    state = ServerState(engine, settings, scheduler)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await scheduler.stop()

    app = FastAPI(title="WrinkleFree", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.server = state
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(InputError, _input_error)
    for module in ROUTES:
        app.include_router(module.router(state))
    return app


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, headers)


async def _input_error(request: Request, error: Exception) -> JSONResponse:
    return await _api_error(request, ApiError(400, str(error)))
