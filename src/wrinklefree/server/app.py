"""The application: routes, error objects, the life of the scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from wrinklefree.engine import Engine
from wrinklefree.server import document, error_answers
from wrinklefree.server.guard import Guard
from wrinklefree.server.metrics import CountRequests
from wrinklefree.server.routes import chat, completions, embeddings, health, metrics, models, page, tokens
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.state import ServerState
from wrinklefree.version import __version__

# Each module has `router(state)`; a further route is a module and its name here.
ROUTES = (health, metrics, models, chat, completions, embeddings, tokens, page)


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """Return the ASGI application that serves ``engine``, which has ``settings.slots`` slots and no other user."""
    scheduler = Scheduler(engine, settings)
    state = ServerState(engine, settings, scheduler)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        yield
        await scheduler.stop()

    # No redirects to a path without the slash: behind a proxy they would name this server, and clients lose the body.
    app = FastAPI(title="WrinkleFree", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
                  redirect_slashes=False)  # fmt: skip
    app.state.server = state
    error_answers.install(app)
    app.add_middleware(Guard, settings=settings, check_room=scheduler.check_room)
    app.add_middleware(CountRequests, metrics=state.metrics)
    for module in ROUTES:
        app.include_router(module.router(state))
    document.install(app, settings)
    return app
