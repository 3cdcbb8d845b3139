"""Answers under way over HTTP: until the client has gone, whole or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from wrinklefree.errors import InputError
from wrinklefree.server.answers import Choice
from wrinklefree.server.errors import ApiError, from_input_error, internal
from wrinklefree.server.work import Event, Ticket

_LOG = logging.getLogger("wrinklefree.server")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx hands events on at once
]

Take = Callable[[Choice, Event], Awaitable[None]]


def event(body: Any) -> bytes:
    """Return one server-sent event with a JSON value."""
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def each(choices: Sequence[Choice], take: Take) -> None:
    """Give the events of all answers to ``take``, of each in order, until all have ended. Raises: the first error."""
    if len(choices) == 1:
        return await _follow(choices[0], take)
    tasks = [asyncio.create_task(_follow(choice, take)) for choice in choices]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _follow(choice: Choice, take: Take) -> None:
    async for found in choice.ticket:
        await take(choice, found)


async def unless_gone(receive: Receive, tickets: Sequence[Ticket], work: Coroutine[Any, Any, None]) -> bool:
    """Do ``work`` and return True, or break it off and return False when the client has gone before.

    The tickets are cancelled however it ends. The request's body must have been read.
    """
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for ticket in tickets:
            ticket.cancel()
        working.cancel()
        watching.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """An answer as server-sent events.

    The status is sent with the first of them (or the first keep-alive comment): what fails before is an answer with a
    status of its own, what fails later a last event with an error object.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        tickets: Sequence[Ticket],
        write: Callable[[Callable[[bytes], Awaitable[None]]], Coroutine[Any, Any, None]],
        keep_alive_seconds: float,
    ) -> None:
        """``write(send)`` sends all events but the last, ``[DONE]``."""
        self.status_code = 200
        self.background = None
        self.raw_headers = list(_HEADERS)
        self._tickets = tickets
        self._write = write
        self._keep_alive_seconds = keep_alive_seconds
        self._begun = False
        self._quiet = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        await unless_gone(receive, self._tickets, self._whole(send))

    async def _whole(self, send: Send) -> None:
        async def out(data: bytes) -> None:
            if not self._begun:
                self._begun = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            self._quiet = False
            await send({"type": "http.response.body", "body": data, "more_body": True})

        beating = asyncio.create_task(self._beat(out))
        try:
            await self._write(out)
            last = DONE
        except Exception as error:
            if not self._begun:
                raise
            last = event(_object(error))
        finally:
            beating.cancel()
        await out(last)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, out: Callable[[bytes], Awaitable[None]]) -> None:
        while True:
            self._quiet = True
            await asyncio.sleep(self._keep_alive_seconds)
            if self._quiet:
                await out(KEEP_ALIVE)


def _object(error: Exception) -> dict[str, Any]:
    if isinstance(error, ApiError):
        return error.body()
    if isinstance(error, InputError):
        return from_input_error(error).body()
    _LOG.error("a stream failed", exc_info=error)
    return internal().body()
