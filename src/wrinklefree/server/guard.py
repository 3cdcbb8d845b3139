"""What a request must pass before a route sees it: who asks, from which page, how large, how deep.

Everything is closed unless it is opened: a path that is not named as public needs the key, a page of another origin
needs its permission.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wrinklefree.server.errors import ApiError, internal
from wrinklefree.server.settings import ServerSettings

# What needs no key: the page's own files (what it asks the API for needs one) and whether the server lives. A path that
# ends with a slash stands for all below it. tests/server/test_server_guard.py holds every other route to the key.
PUBLIC = ("/health", "/health/live", "/health/ready", "/favicon.ico", "/page/")
_PAGE = "/"
# What a full queue refuses before anything is read: in a flood each further step takes time from answers under way.
_QUEUED = ("/v1/chat/completions", "/v1/completions")

_ACCESS = logging.getLogger("wrinklefree.access")
_LOG = logging.getLogger("wrinklefree.server")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_HEADER_NAMES = re.compile(rb"[A-Za-z0-9_, -]{1,2048}")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_DEPTH = np.zeros(256, np.int8)
_DEPTH[list(b"[{")] = 1
_DEPTH[list(b"]}")] = -1
_SHOWN_PATH_CHARACTERS = 200
# Of all objects together: each may be an error of its own to whoever checks fields.
_MAX_KEYS = 20_000
# Bodies that are held at a time, in the largest size of one.
_HELD_BODIES = 32
_SAFE = (b"x-content-type-options", b"nosniff")


class Guard:
    """The outermost layer of the application (pure ASGI).

    A route finds in the scope: ``wrinklefree.client``, a name for fair shares, and ``wrinklefree.request_id``.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, check_room: Callable[[], None]) -> None:
        """``check_room`` raises ApiError while no answer is taken in."""
        self._app = app
        self._settings = settings
        self._check_room = check_room
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.api_keys]
        self._origins = frozenset(origin.rstrip("/").lower() for origin in settings.cors_origins)
        self._hosts = frozenset(host.lower() for host in settings.hosts)
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with an error object."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            # A header that may come once is ambiguous when it comes twice; joined, it is no valid one.
            headers[name] = headers[name] + b", " + value if name in headers else value
        request = _Request(scope, headers, send, self._cors(headers))
        scope["wrinklefree.request_id"] = request.id.decode()
        try:
            if request.is_preflight:
                self._check_place(headers)
                await request.answer_preflight()
                return
            scope["wrinklefree.client"] = self._check(scope, headers)
            if scope["method"] == "POST" and scope["path"] in _QUEUED:
                self._check_room()
            if _has_body(headers):
                body = await self._body(request, headers, receive)
                if body is None:
                    return  # the client has gone
                receive = _replay(body, receive)
            await self._app(scope, receive, request.send)
        except ApiError as error:
            await request.fail(error)
        except Exception:
            _LOG.exception("request %s failed", request.id.decode())
            await request.fail(internal())
        finally:
            self._held_bytes -= request.held_bytes
            request.log()

    # ---- who asks

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """Return a name for the client. Raises: ApiError when it may not ask."""
        self._check_place(headers)
        address = (scope.get("client") or ("", 0))[0]
        if not self._keys:
            return str(address)
        key = self._key_of(headers)
        if key is None:
            if is_public(scope["path"]):
                return str(address)
            message = "a valid API key is needed; send it as the header: Authorization: Bearer KEY"
            raise ApiError(401, message, "authentication_error", code="invalid_api_key")
        # With one key for everybody, shares go by address; with a key for each, they go by key.
        return str(address) if len(self._keys) == 1 else f"key-{key}"

    def _key_of(self, headers: dict[bytes, bytes]) -> int | None:
        """Return the number of the key that was sent, in a time that does not depend on how much of it is right."""
        scheme, _, sent = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(sent.strip()).digest()
        found = None
        for number, key in enumerate(self._keys):
            if hmac.compare_digest(key, digest):
                found = number
        return found if scheme.lower() == b"bearer" else None

    # ---- from which page

    def _cors(self, headers: dict[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return the headers that let a page of an allowed origin read the answer."""
        origin = headers.get(b"origin")
        if origin is None or not self._origins:
            return []
        vary = [(b"vary", b"Origin")]
        if not self._is_allowed(origin):
            return vary
        shown = b"*" if "*" in self._origins else origin
        return [
            *vary,
            (b"access-control-allow-origin", shown),
            (b"access-control-expose-headers", b"x-request-id, retry-after"),
        ]

    def _is_allowed(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1").lower() in self._origins

    def _check_place(self, headers: dict[bytes, bytes]) -> None:
        """Raise ApiError for a page of another origin, and for a name that this server does not go by.

        A browser lets any page send requests to an address of the user's own machine or network, and lets a page whose
        name was made to point there read the answers too.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts and _name_of(host) not in self._hosts:
            message = "the Host header names none of this server's names; add it with --allow-host, or set an API key"
            raise ApiError(403, message, "permission_error", code="host_not_allowed")
        origin = headers.get(b"origin")
        if origin is None or headers.get(b"sec-fetch-site") == b"same-origin" or self._is_allowed(origin):
            return
        if urlsplit(origin.decode("latin-1").lower()).netloc != host:
            message = "pages of this origin may not use the server; allow it with --cors-origin"
            raise ApiError(403, message, "permission_error", code="origin_not_allowed")

    # ---- how large, how deep

    async def _body(self, request: _Request, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """Return the whole body, or None when the client has gone. Raises: ApiError."""
        most = self._settings.max_body_bytes
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "content-encoding: compressed bodies are not read; send it plain", code="encoding")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > most:
            raise _too_large(most)
        body = bytearray()
        while True:
            news = await receive()
            if news["type"] == "http.disconnect":
                return None
            piece = news.get("body", b"")
            body += piece
            request.held_bytes += len(piece)
            self._held_bytes += len(piece)
            if len(body) > most:
                raise _too_large(most)
            if self._held_bytes > _HELD_BODIES * most:
                message = "the server holds too many large requests; try again soon"
                raise ApiError(429, message, "rate_limit_error", code="memory", retry_after=1)
            if not news.get("more_body", False):
                break
        check_text(bytes(body), self._settings.max_json_depth)
        return bytes(body)


class _Request:
    """One request on its way out: its headers, its line in the log."""

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], send: Send, cors: list[tuple[bytes, bytes]]) -> None:
        given = headers.get(b"x-request-id", b"")
        self.id = given if _REQUEST_ID.fullmatch(given) else os.urandom(8).hex().encode()
        self.is_preflight = (
            scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers
        )
        self._scope = scope
        self._send = send
        self._headers = headers
        self._extra = [(b"x-request-id", self.id), _SAFE, *cors]
        self._cors = cors
        self._status = 0
        self.held_bytes = 0
        self._started = time.perf_counter()

    async def send(self, message: Message) -> None:
        """Pass a message of the application on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", ()))
            message = {**message, "headers": headers + [pair for pair in self._extra if pair not in headers]}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun: then it stays unfinished, which the client sees."""
        if self._status:
            return
        body = json.dumps(error.body()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if error.retry_after is not None:
            headers.append((b"retry-after", str(error.retry_after).encode()))
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body if self._scope["method"] != "HEAD" else b""})

    async def answer_preflight(self) -> None:
        """Tell a browser what a page of an allowed origin may send."""
        asked = self._headers.get(b"access-control-request-headers", b"")
        headers = [(b"content-length", b"0")]
        if self._cors:
            names = asked if _HEADER_NAMES.fullmatch(asked) else b"authorization, content-type"
            headers += [
                (b"access-control-allow-methods", b"GET, POST"),
                (b"access-control-allow-headers", names),
                (b"access-control-max-age", b"600"),
            ]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send({"type": "http.response.body", "body": b""})

    def log(self) -> None:
        """Write the request's line: no query, no body, nothing that a client could break lines with."""
        if not _ACCESS.isEnabledFor(logging.INFO):
            return
        client = (self._scope.get("client") or ("-", 0))[0]
        path = self._scope["path"][:_SHOWN_PATH_CHARACTERS]
        path = path if path.isprintable() and " " not in path else ascii(path)
        ms = (time.perf_counter() - self._started) * 1000
        status = self._status or "gone"
        _ACCESS.info("%s %s %s %s %.0f ms %s", client, self._scope["method"], path, status, ms, self.id.decode())


def is_public(path: str) -> bool:
    """Return whether a path needs no key."""
    return path == _PAGE or any(path.startswith(p) if p.endswith("/") else path == p for p in PUBLIC)


def check_text(body: bytes, most: int) -> None:
    """Raise ApiError for a body that is not UTF-8, has a mass of keys, or is nested deeper than ``most``."""
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 at byte {error.start}", code="invalid_utf8") from error
    if body.count(b"[") + body.count(b"{") <= most and body.count(b":") <= _MAX_KEYS:
        return
    bare = _STRING.sub(b"", body)
    if bare.count(b":") > _MAX_KEYS:
        raise ApiError(400, f"the body has more than {_MAX_KEYS} keys", code="too_many_keys")
    brackets = bare.translate(None, _NO_BRACKETS)
    depths = np.cumsum(_DEPTH[np.frombuffer(brackets, np.uint8)], dtype=np.int32)
    if depths.size and int(depths.max()) > most:
        raise ApiError(400, f"the body is nested {int(depths.max())} deep, allowed is {most}", code="too_deep")


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than the {most} bytes that are allowed", code="body_too_large")


def _has_body(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    return host[: host.find("]") + 1] if host.startswith("[") else host.partition(":")[0]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive that gives a body that was read already, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
