"""Who may ask, from which page, and how large: every route but those that are public needs the key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_client import RawClient, post, status_and_error
from running_server import MODEL, RunningServer

from wrinklefree.server.errors import ApiError
from wrinklefree.server.guard import PUBLIC, check_text, is_public

KEY, OTHER_KEY = "key-of-alice", "key-of-bob-1"
ORIGIN = "https://app.example"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
MOST_BYTES = 20_000


@pytest.fixture(scope="module")
def guarded(toy: Path) -> Iterator[RunningServer]:
    limits = {"max_body_bytes": MOST_BYTES, "cors_origins": (ORIGIN,), "api_keys": (KEY, OTHER_KEY)}
    with RunningServer(toy, **limits) as running:
        yield running


def _routes(found: Iterable[Any]) -> list[tuple[str, str]]:
    """Return method and path of routes, those of included routers too."""
    leaves = []
    for route in found:
        inner = getattr(route, "original_router", route)
        if hasattr(inner, "routes"):
            leaves += _routes(inner.routes)
        else:
            leaves += [(method, route.path) for method in sorted(route.methods or {"GET"})]
    return leaves


def _error(answer: httpx.Response) -> dict[str, object]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def test_every_route_that_is_not_public_needs_the_key(guarded: RunningServer) -> None:
    """All routes that the application has, with every method they have; and paths that no route has."""
    routes = _routes(guarded.app.routes)
    assert ("POST", "/v1/chat/completions") in routes and ("GET", "/openapi.json") in routes
    public = {path for _, path in routes if is_public(path)}
    assert public <= {"/", "/page/{name}", "/health", "/health/live", "/health/ready"}
    for method, path in [*routes, ("GET", "/nowhere"), ("POST", "/health/x"), ("GET", "/v1/models/x")]:
        for headers in (
            {},
            {"authorization": "Bearer wrong-key-1"},
            {"authorization": f"Basic {KEY}"},
            {"api-key": KEY},
        ):
            answer = guarded.client.request(method, path, headers=headers)
            if path in public:
                assert answer.status_code != 401
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert method == "HEAD" or _error(answer)["code"] == "invalid_api_key"


@pytest.mark.parametrize("path", ["/healthy", "/health/", "/health/live/x", "//", "/page", "/Page/x", "/v1/models"])
def test_what_looks_like_a_public_path_is_none(path: str) -> None:
    assert not is_public(path) and "/" not in PUBLIC


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
def test_each_key_is_good(guarded: RunningServer, key: str) -> None:
    answer = guarded.client.post("/v1/chat/completions", json=CHAT, headers={"authorization": f"bearer {key}"})
    assert answer.status_code == 200 and answer.json()["choices"]


def test_two_keys_in_one_request_are_none(guarded: RunningServer) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    assert guarded.client.get("/openapi.json", headers=headers).status_code == 401


def test_without_keys_all_is_open(server: RunningServer) -> None:
    assert server.client.get("/openapi.json").status_code == 200


def test_request_ids(server: RunningServer) -> None:
    own = server.client.get("/health", headers={"x-request-id": "a-1:b"}).headers["x-request-id"]
    assert own == "a-1:b"
    made = {
        server.client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("a b", "x" * 65)
    }
    assert len(made) == 2 and all(len(one) == 16 for one in made)


# ---- pages of other origins


def test_cors_is_closed(server: RunningServer) -> None:
    """A page of another origin is refused before a route sees its request; no header lets it read the refusal."""
    for method in ("GET", "POST"):
        answer = server.client.request(
            method, "/v1/chat/completions", json=CHAT, headers={"origin": "https://evil.example"}
        )
        assert answer.status_code == 403 and _error(answer)["code"] == "origin_not_allowed"
        assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    assert server.client.options("/v1/chat/completions", headers=preflight).status_code == 403


@pytest.mark.parametrize("extra", [{}, {"sec-fetch-site": "same-origin", "origin": "https://proxy.example"}])
def test_the_own_page_may_ask(server: RunningServer, extra: dict[str, str]) -> None:
    headers = {"origin": server.url, **extra}
    assert server.client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


def test_an_allowed_origin_may_ask(guarded: RunningServer) -> None:
    asked = {"origin": ORIGIN, "access-control-request-method": "POST",
             "access-control-request-headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    preflight = guarded.client.options("/v1/chat/completions", headers=asked)  # browsers send no key with it
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    answer = guarded.client.post(
        "/v1/chat/completions", json=CHAT, headers={"origin": ORIGIN, "authorization": f"Bearer {KEY}"}
    )
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == ORIGIN
    assert "Origin" in answer.headers["vary"]
    refused = guarded.client.get("/openapi.json", headers={"origin": ORIGIN})
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == ORIGIN  # it may read why


def test_a_name_made_to_point_here_is_refused(toy: Path) -> None:
    with RunningServer(toy, hosts=("localhost", "127.0.0.1")) as named:
        assert named.client.get("/openapi.json").status_code == 200
        assert named.client.get("/openapi.json", headers={"host": "LOCALHOST:9"}).status_code == 200
        for host in ("evil.example", "localhost.evil.example", "[::1]:80", ""):
            answer = named.client.get("/openapi.json", headers={"host": host})
            assert answer.status_code == 403 and _error(answer)["code"] == "host_not_allowed"


# ---- sizes


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_large_body_is_refused_and_the_connection_lives_on(guarded: RunningServer, chunked: bool) -> None:
    text = b"x" * (MOST_BYTES * 20)
    body = iter([text[i : i + 7000] for i in range(0, len(text), 7000)]) if chunked else text
    headers = {"authorization": f"Bearer {KEY}"}
    answer = guarded.client.post("/v1/chat/completions", content=body, headers=headers)
    assert answer.status_code == 413 and _error(answer)["code"] == "body_too_large"
    assert guarded.client.post("/v1/chat/completions", json=CHAT, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b'{"model": "\xff\xfe"}', {}, 400, "invalid_utf8"),
        (b"[" * 5000, {}, 400, "too_deep"),
        (b'{"a":' * 100 + b"1" + b"}" * 100, {}, 400, "too_deep"),
        (b"{" + b",".join(b'"%d":1' % i for i in range(20_001)) + b"}", {}, 400, "too_many_keys"),
        (b"{}", {"content-encoding": "gzip"}, 415, "encoding"),
    ],
    ids=["utf8", "arrays", "objects", "keys", "gzip"],
)
def test_bodies_no_route_should_see(
    server: RunningServer, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    answer = server.client.post(
        "/v1/chat/completions", content=body, headers={"content-type": "application/json", **headers}
    )
    assert (answer.status_code, _error(answer)["code"]) == (status, code)


_json = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\ a', max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text('[{"\\', max_size=3), inner, max_size=3),
    max_leaves=20,
)


def _depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 0


@settings(max_examples=150, deadline=None)
@given(_json, st.integers(0, 4))
def test_depth_is_that_of_the_parsed_value(value: object, most: int) -> None:
    """Brackets within strings count for nothing, escaped quotation marks do not end a string."""
    body = json.dumps(value).encode()
    if _depth(value) <= most:
        check_text(body, most)
    else:
        with pytest.raises(ApiError, match=f"nested {_depth(value)} deep"):
            check_text(body, most)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{}] * 19_000}]}),
        ("/v1/completions", {"prompt": [{}] * 19_000}),
        ("/v1/embeddings", {"input": [[{}]] * 19_000}),
        ("/detokenize", {"tokens": [-1] * 19_000}),
    ],
)
def test_of_many_wrong_items_one_is_told(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    """Else megabytes of wrong items would become a million errors: a minute of work, gigabytes of memory."""
    made: list[int] = []

    async def count(request: Any, error: RequestValidationError) -> Response:
        made.append(len(error.errors()))
        return Response(status_code=400)

    kept = server.app.exception_handlers[RequestValidationError]
    server.app.middleware_stack = None
    server.app.exception_handlers[RequestValidationError] = count
    try:
        assert server.client.post(path, json=body).status_code == 400
    finally:
        server.app.exception_handlers[RequestValidationError] = kept
        server.app.middleware_stack = None
    assert len(made) == 1 and made[0] < 10


def test_large_bodies_held_at_a_time_are_bounded(toy: Path) -> None:
    """Many clients each with most of a body: memory for a few of them is promised, the others try again later."""
    with RunningServer(toy, max_body_bytes=1000) as running, ExitStack() as held:
        clients = [held.enter_context(RawClient(running.url)) for _ in range(40)]
        request = post("/v1/completions", b'{"prompt": "a", "max_tokens": 1' + b" " * 940 + b"}")
        for client in clients:
            client.send(request[:-2])
        answers = []
        for client in clients:
            client.send(request[-2:])
            answers.append(client.read_until(b"}}"))
        refused = [status_and_error(one) for one in answers if not one.startswith(b"HTTP/1.1 200")]
        assert 0 < len(refused) < 10 and {(status, error["code"]) for status, error in refused} == {(429, "memory")}
        assert running.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200


def test_an_error_of_ours_tells_nothing(toy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunningServer(toy) as running:

        async def broken() -> None:
            raise RuntimeError(f"secret of {__file__}")

        running.app.router.routes.insert(0, APIRoute("/broken", broken))
        answer = running.client.get("/broken", headers={"x-request-id": "find-me"})
        assert answer.status_code == 500 and answer.headers["x-request-id"] == "find-me"
        assert "secret" not in answer.text and "/" not in str(_error(answer)["message"])
    assert "find-me" in caplog.text and "secret" in caplog.text


@pytest.mark.parametrize(("trusted", "expected"), [((), "127.0.0.1"), (("127.0.0.1",), "192.0.2.7")])
def test_only_a_trusted_proxy_says_who_asks(toy: Path, trusted: tuple[str, ...], expected: str) -> None:
    """Else a client could choose its name, and with that its share."""
    with RunningServer(toy, trusted_proxies=trusted) as running:

        async def who(request: Request) -> str:
            return str(request.scope["wrinklefree.client"])

        running.app.router.routes.insert(0, APIRoute("/who", who))
        assert running.client.get("/who", headers={"x-forwarded-for": "192.0.2.7"}).json() == expected
