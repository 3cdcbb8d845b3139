"""HTTP/1.1 connections that cannot be held for nothing: uvicorn's protocol with limits on what a client may keep open.

uvicorn closes a connection that is idle between two requests, and nothing else: headers that never end, a body that
stops in the middle, a reader that does not read, and thousands of connections would all be kept.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import socket
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from wrinklefree.server.errors import ApiError
from wrinklefree.server.settings import ServerSettings

# Requests that a client may send before it has read the answer to the first.
_MAX_PIPELINED = 8
# What is read and thrown away of a body that was refused, so that the client reads the refusal and not a reset.
_DISCARDED_BYTES = 64 << 20
_LINGER_SECONDS = 2.0
# A peer that has vanished (power, network) is noticed after about this long though nobody closed the connection.
_PEER_SECONDS = 60
_OFFER = re.compile(rb"(\r\n)upgrade:", re.IGNORECASE)


def protocol_class(settings: ServerSettings) -> Callable[..., asyncio.Protocol]:
    """Return what uvicorn makes its connections with."""
    return functools.partial(Connection, settings=settings)


class Connection(HttpToolsProtocol):
    """A client's connection. Time runs for the headers, for the body, and for a reader that does not read."""

    def __init__(self, *args: Any, settings: ServerSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = settings.idle_connection_seconds  # type: ignore[assignment]
        self._limits = settings
        self._since = self.loop.time()
        self._reading_headers = True
        self._in_message = False
        self._fed_bytes = 0
        self._header_count = 0
        self._refusal: ApiError | None = None
        self._discarding = False
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    # ---- a connection's begin and end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        _notice_vanished_peers(transport.get_extra_info("socket"))
        if len(self.connections) > self._limits.max_connections and not self._make_room():
            message = f"the server has {self._limits.max_connections} connections, all of them busy; try again soon"
            self._refuse(ApiError(503, message, "server_error", code="too_many_connections", retry_after=1))
            return
        self._allow(self._limits.header_seconds, self._headers_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._allow(None, None)
        self._stop_write_timer()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # which uvicorn leaves to run out when the connection was reset

    def eof_received(self) -> None:
        """A client that has closed its half is gone: nobody is left to cancel for."""

    def _make_room(self) -> bool:
        """Close the connection that has been waiting for a request the longest. Return False when all are busy."""
        others = [c for c in self.connections if isinstance(c, Connection) and c is not self and not c.answering]
        if not others:
            return False
        oldest = min(others, key=lambda connection: connection._since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    # ---- what comes in

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            self._fed_bytes += len(data)
            if self._fed_bytes > _DISCARDED_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        if self._timer is None and not self._in_message:
            self._allow(self._limits.header_seconds, self._headers_late)
        self._fed_bytes += len(data)
        if self._reading_headers and b"pgrade" in data:
            data = _without_offer(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer in pieces; what follows it is not read
        except httptools.HttpParserError:
            self._refuse(self._refusal or ApiError(400, "the request is no valid HTTP", code="invalid_http"))
            return
        if self._reading_headers and self._fed_bytes > self._limits.max_header_bytes:
            self._refuse(self._headers_too_large())
        elif self._in_message and self._fed_bytes > self._limits.max_body_bytes + _DISCARDED_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_message = self._reading_headers = True
        self._header_count = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1  # trailers behind a body count too
        if self._header_count > self._limits.max_headers:
            self._refusal = self._headers_too_large()
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if sum(len(name) + len(value) + 4 for name, value in self.headers) + len(self.url) > (
            self._limits.max_header_bytes
        ):
            self._refusal = self._headers_too_large()
            raise self._refusal
        self._reading_headers = False
        self._fed_bytes = 0
        self._allow(self._limits.body_seconds, self._body_late)
        super().on_headers_complete()
        if len(self.pipeline) > _MAX_PIPELINED:
            self._refusal = ApiError(400, f"more than {_MAX_PIPELINED} requests were sent ahead", code="pipelining")
            raise self._refusal

    def on_message_complete(self) -> None:
        self._in_message = False
        self._reading_headers = True
        self._fed_bytes = 0
        self._since = self.loop.time()
        self._allow(None, None)
        super().on_message_complete()
        if not self.answering:  # refused before its body had come; the connection is idle from now on
            self._idle()

    # ---- what goes out

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()
        if self.transport.is_closing():  # close() waits for a reader; this one may never come
            self._watch_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._stop_write_timer()
        super().resume_writing()

    def _watch_writing(self) -> None:
        self._stop_write_timer()
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # ---- limits

    def _allow(self, seconds: float | None, late: Callable[[], None] | None) -> None:
        """Call ``late`` when so many seconds have passed, instead of what was to be called until now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None or late is None else self.loop.call_later(seconds, late)

    def _idle(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _headers_late(self) -> None:
        if self._in_message:
            message = f"the headers did not come within {self._limits.header_seconds:g} s"
            self._refuse(ApiError(408, message, code="timeout"))
        else:
            self.transport.close()  # a connection without a request is closed without a word

    def _body_late(self) -> None:
        message = f"the body did not come within {self._limits.body_seconds:g} s"
        self._refuse(ApiError(408, message, code="timeout"))

    def _headers_too_large(self) -> ApiError:
        most, most_bytes = self._limits.max_headers, self._limits.max_header_bytes
        message = f"too many headers: allowed are {most} with {most_bytes} bytes"
        return ApiError(431, message, code="headers_too_large")

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that never came to be with an error, then close; within an answer, just close."""
        self._allow(None, None)
        self._unset_keepalive_if_required()
        if self.answering:
            if self.pipeline or self.cycle.response_started:
                self.transport.abort()  # a further word would become part of the answer under way
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.is_closing():
            return
        self.transport.write(raw_answer(error))
        # Closing with unread bytes would reset the connection, and the client might never see the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._discarding = True
        self._fed_bytes = 0
        self.flow.resume_reading()
        self._allow(_LINGER_SECONDS, self.transport.abort)


def raw_answer(error: ApiError) -> bytes:
    """Return a whole HTTP/1.1 response that ends its connection."""
    body = json.dumps(error.body()).encode()
    headers = [
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-content-type-options: nosniff",
        b"connection: close",
    ]
    if error.retry_after is not None:
        headers.append(b"retry-after: %d" % error.retry_after)
    return STATUS_LINE[error.status] + b"\r\n".join(headers) + b"\r\n\r\n" + body


def _without_offer(data: bytes) -> bytes:
    """Rename the header of an offer to speak another protocol, which HTTP/1.1 allows to pass over.

    The parser would stop before the body. Java's client offers HTTP/2 with its first request, a body behind it.
    """
    end = data.find(b"\r\n\r\n")
    end = len(data) if end < 0 else end
    return _OFFER.sub(rb"\1x-offer:", data[:end]) + data[end:]


def _notice_vanished_peers(connection: socket.socket | None) -> None:
    if connection is None or connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_KEEPIDLE", _PEER_SECONDS // 2),
        ("TCP_KEEPINTVL", _PEER_SECONDS // 6),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", _PEER_SECONDS * 1000),
    ):
        if hasattr(socket, option):  # macOS has other names
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
