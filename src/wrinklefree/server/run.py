"""The life of a server's process: bind, load the model while saying so, serve, drain, end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.engine.decoding_settings import Mode
from wrinklefree.errors import FormatError, InputError
from wrinklefree.server.access_log import LogWriter
from wrinklefree.server.app import create_app
from wrinklefree.server.errors import ApiError
from wrinklefree.server.grammar import prepare
from wrinklefree.server.protocol import protocol_class
from wrinklefree.server.routes.page import page_routes
from wrinklefree.server.settings import ServerSettings

# Connections that wait to be accepted; the kernel refuses the next.
_BACKLOG = 512
# What an open connection may take to finish once the scheduler has stopped: the last bytes to a reader.
_CLOSING_SECONDS = 5
_LOADING = ApiError(503, "the model is being loaded; try again soon", "server_error", code="loading", retry_after=2)

Load = Callable[[], Engine]
Say = Callable[[str], None]


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address; port 0 takes a free one. Raises: InputError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host!r}: no address of this machine ({error})") from error
    bound = socket.socket(family, kind, protocol)
    # A server that has just ended leaves connections in TIME_WAIT; they must not keep the next one from its port.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = error.strerror or str(error)
        raise InputError(f"--host {host} --port {port}: {why}; choose another --port (0 takes a free one)") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address that a browser on this machine opens."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warm_up(engine: Engine, mode: Mode) -> None:
    """Do what a first request would wait for: read the tokenizer and its tables, measure what passes cost.

    Raises: InputError when the model was not trained for ``mode``; FormatError for a damaged tokenizer.
    """
    engine.tokenizer.encode("warm")
    with contextlib.suppress(InputError):  # a request for a grammar will be told
        prepare(engine)
    with contextlib.suppress(FormatError):  # a conversation will be told
        _ = engine.tokenizer.chat_template
    with engine.generate([0], SamplingParams(max_tokens=1), DecodingSettings(mode=mode)):
        pass


def server_config(app: Any, settings: ServerSettings) -> uvicorn.Config:
    """Return how uvicorn runs an application of ours, in the process of `wf serve` and in tests."""
    return uvicorn.Config(
        app,
        http=protocol_class(settings),  # type: ignore[arg-type]
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # To believe X-Forwarded-For of anybody would let a client choose who it is, and with that its share.
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )


class Life:
    """The ASGI application from the first moment on: 503 while the model is loaded (but the page), then the real one.

    ``load`` runs in a thread of its own. ``failure``: what it raised; the server ends then.
    """

    def __init__(self, load: Load, settings: ServerSettings, ready: Callable[[Engine], None]) -> None:
        self.failure: BaseException | None = None
        self.loading = True
        self._load = load
        self._settings = settings
        self._ready = ready
        self._app: FastAPI | None = None
        self._page = Starlette(routes=page_routes())  # it says that it waits, and goes on by itself
        self._inner: AbstractAsyncContextManager[Any] | None = None
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or follow the server's start and end."""
        if scope["type"] == "lifespan":
            await self._follow(receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http" and (scope["path"] == "/" or scope["path"].startswith("/page/")):
            await self._page(scope, receive, send)
        elif scope["type"] == "http":
            live = scope["path"] == "/health/live"
            await _answer(send, 200 if live else 503, {"status": "ok"} if live else _LOADING.body())

    async def _follow(self, receive: Any, send: Any) -> None:
        await receive()
        self._task = asyncio.create_task(self._become_ready())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.drain()
        await send({"type": "lifespan.shutdown.complete"})

    async def _become_ready(self) -> None:
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Engine] = loop.create_future()

        def give(engine: Engine | None, error: BaseException | None) -> None:
            if not loaded.done():
                loaded.set_result(engine) if error is None else loaded.set_exception(error)  # type: ignore[arg-type]

        def work() -> None:
            engine, failure = None, None
            try:
                engine = self._load()
            except BaseException as error:
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(give, engine, failure)

        # A daemon, so that an order to stop need not wait for a large model.
        threading.Thread(target=work, name="load", daemon=True).start()
        try:
            engine = await loaded
            app = create_app(engine, self._settings)
            app.state.server.scheduler.on_failure = self._fail
            self._inner = app.router.lifespan_context(app)
            await self._inner.__aenter__()
            self._app = app
            self.loading = False
            self._ready(engine)
        except Exception as error:
            self.failure = error

    def _fail(self, error: BaseException) -> None:
        """End a server whose engine cannot compute any more: whoever watches the process starts another."""
        self.failure = error

    async def drain(self) -> None:
        """Let running answers finish, as long as the settings allow, and end the scheduler's thread."""
        if self._task is not None:
            self._task.cancel()
        inner, self._inner = self._inner, None
        if inner is not None:
            await inner.__aexit__(None, None, None)


async def _answer(send: Any, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(_LOADING.retry_after).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class _Server(uvicorn.Server):
    """uvicorn, ended by signals the way an operator expects: the first drains, a second one cuts."""

    def __init__(self, config: uvicorn.Config, life: Life, say: Say) -> None:
        super().__init__(config)
        self._life = life
        self._say = say

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; on a second signal end at once. The process does not die of the signal afterwards."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look, ten times a second, whether to end."""
        return await super().on_tick(counter) or self._life.failure is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while still listening, so that whoever asks hears 503 and not silence; then close."""
        if self._life.failure is None and not self._life.loading:
            self._say("stopping: running answers finish; a second signal ends at once")
        for connection in list(self.server_state.connections):
            connection.shutdown()  # idle ones now, the others behind their answer; their clients go elsewhere
        await self._life.drain()
        await super().shutdown(sockets)


def serve(bound: socket.socket, load: Load, settings: ServerSettings, log: LogWriter) -> None:
    """Serve on a bound socket until SIGTERM or SIGINT. ``log`` takes lines for the operator.

    Raises: whatever ``load`` raised.
    """
    url = url_of(bound)

    def say(line: str) -> None:
        log.write(f"wf: {line}")

    def ready(engine: Engine) -> None:
        say(f"ready: {settings.model_id} on {engine.threads} threads ({engine.kernels_name}), {settings.slots} answers "
            f"at a time, context {engine.context}; page {url}/, API base_url {url}/v1")  # fmt: skip

    life = Life(load, settings, ready)
    server = _Server(server_config(life, settings), life, say)
    bound.listen(_BACKLOG)  # who connects from now on waits instead of being refused
    say(f"listening on {url}, loading {settings.model_id}")
    server.run(sockets=[bound])
    if life.failure is None:
        say("stopped")
    log.flush()
    if life.failure is not None:
        raise life.failure
    if life.loading:
        # The thread that loads may be deep in native code; the interpreter must not be taken down under it.
        os._exit(0)
