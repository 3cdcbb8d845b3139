"""Connections that would be held for nothing are closed, each with the answer it deserves, and others go on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from raw_client import RawClient, post, status_and_error
from running_server import MODEL, RunningServer

SECONDS = 0.3  # every limit in time
MOST_CONNECTIONS = 6
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
LONG = {**CHAT, "max_tokens": 300, "n": 4, "stream": True, "ignore_eos": True}
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def strict(toy: Path) -> Iterator[RunningServer]:
    limits = {name: SECONDS for name in ("header_seconds", "body_seconds", "write_seconds", "idle_connection_seconds")}
    server = RunningServer(toy, max_connections=MOST_CONNECTIONS, **limits)
    # Little room on the way out, so that a reader that does not read is felt at once.
    server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with server as running:
        yield running


@pytest.fixture(scope="module")
def expected(strict: RunningServer) -> str:
    return _ask(strict)


@pytest.fixture(autouse=True)
def nothing_is_left(strict: RunningServer, expected: str) -> Iterator[None]:
    """Behind each test: the next request is right, and no connection stays."""
    yield
    assert _ask(strict) == expected
    connections = strict._server.server_state.connections
    _wait_until(lambda: not connections)


def _ask(server: RunningServer) -> str:
    """Return the answer to `CHAT`, over a connection of its own that is closed."""
    with RawClient(server.url) as client:
        client.send(post(PATH, CHAT, "Connection: close"))
        head, _, body = client.read_all().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        return str(json.loads(body)["choices"][0]["message"]["content"])


def _wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_a_connection_without_a_request_is_closed_without_a_word(strict: RunningServer) -> None:
    with RawClient(strict.url) as client:
        assert client.read_all() == b""


@pytest.mark.parametrize("drip", [b"", b"X-A: b\r\n"], ids=["silent", "dripping"])
def test_headers_that_never_end(strict: RunningServer, drip: bytes) -> None:
    """Slowloris: the time is for all headers together, whether or not more of them come."""
    with RawClient(strict.url) as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
        client.socket.settimeout(0.02)
        answer = b""
        while b"}}" not in answer:
            client.send(drip)
            try:
                answer += client.socket.recv(65536)
            except TimeoutError:
                continue
        status, error = status_and_error(answer)
        assert (status, error["code"]) == (408, "timeout")


@pytest.mark.parametrize("path", [PATH, "/health"])
def test_a_body_that_stops_in_the_middle(strict: RunningServer, path: str) -> None:
    with RawClient(strict.url) as client:
        client.send(post(path, CHAT)[:-5])
        status, error = status_and_error(client.read_all())
        assert (status, error["code"]) == (408, "timeout")


def test_a_request_that_is_refused_before_its_body_comes(strict: RunningServer) -> None:
    """The refusal does not wait for the body; the connection does, but not for ever."""
    with RawClient(strict.url) as client:
        client.send(f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n".encode())
        status, error = status_and_error(client.read_until(b"}}"))
        assert (status, error["code"]) == (413, "body_too_large")
        client.read_all()


def test_a_connection_between_two_requests_is_closed(strict: RunningServer) -> None:
    with RawClient(strict.url) as client:
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_all().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 1_000_000,
        b"GET /" + b"y" * 1_000_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"y" * 40_000 + b"\r\n\r\n",
    ],
    ids=["10000-headers", "one-endless", "long-url", "one-long"],
)
def test_too_many_headers(strict: RunningServer, request_: bytes) -> None:
    with RawClient(strict.url) as client:
        client.send(request_)
        status, error = status_and_error(client.read_all())
        assert (status, error["code"]) == (431, "headers_too_large")


def test_endless_trailers_are_headers_too(strict: RunningServer) -> None:
    with RawClient(strict.url) as client:
        client.send(b"POST /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        client.send(b"".join(b"X-%d: y\r\n" % i for i in range(10_000)))
        status, error = status_and_error(client.read_all())
        assert (status, error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),  # a TLS client
        b"\r\n\r\nwhat?\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX\x00Y: z\r\n\r\n",
    ],
    ids=["tls", "words", "url", "smuggling", "length", "nul"],
)
def test_what_is_no_http(strict: RunningServer, garbage: bytes) -> None:
    with RawClient(strict.url) as client:
        client.send(garbage)
        status, error = status_and_error(client.read_all())
        assert (status, error["code"]) == (400, "invalid_http")


def test_garbage_behind_a_request_never_gets_into_its_answer(strict: RunningServer) -> None:
    with RawClient(strict.url) as client:
        client.send(post(PATH, LONG))
        client.read_until(b"data: ")
        client.send(b"\x00garbage\r\n\r\n")
        assert b"invalid_http" not in client.read_all()
    _wait_until(lambda: not strict.app.state.server.scheduler._running)


def test_a_reader_that_does_not_read_is_broken_off(strict: RunningServer) -> None:
    """The bytes that wait for it are bounded, its answers are cancelled, and its socket is closed."""
    with RawClient(strict.url, receive_buffer=4096) as client:
        client.send(post(PATH, LONG))
        client.read_until(b"data: ")
        _wait_until(lambda: not strict._server.server_state.connections)
        assert b"[DONE]" not in client.read_all()


def test_new_connections_replace_idle_ones(strict: RunningServer) -> None:
    """With every connection taken by somebody who asks for nothing, a request is answered at once."""
    with ExitStack() as held:
        for _ in range(3 * MOST_CONNECTIONS):
            held.enter_context(RawClient(strict.url))
        client = held.enter_context(RawClient(strict.url))
        client.send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_until(b"}").startswith(b"HTTP/1.1 200")


def test_more_connections_than_allowed_with_all_of_them_busy(toy: Path) -> None:
    with RunningServer(toy, max_connections=2) as running, ExitStack() as held:
        busy = [held.enter_context(RawClient(running.url)) for _ in range(2)]
        for client in busy:
            client.send(post(PATH, CHAT, "Expect: 100-continue").partition(b"{")[0])
            client.read_until(b"100 Continue")
        with RawClient(running.url) as further:
            status, error = status_and_error(further.read_all())
            assert (status, error["code"]) == (503, "too_many_connections")


def test_requests_sent_ahead_are_answered_in_order_but_not_without_end(strict: RunningServer) -> None:
    get = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with RawClient(strict.url) as client:
        client.send(post(PATH, CHAT) + get + get)
        answer = client.read_all()
        assert answer.count(b"HTTP/1.1 200") == 3 and answer.index(b"choices") < answer.index(b'"status"')
    with RawClient(strict.url) as client:
        client.send(get * 1000)
        assert client.read_all().count(b"HTTP/1.1 200") < 10


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_offer_of_http2_is_passed_over(strict: RunningServer, method: str) -> None:
    """Java's client makes the offer with every first request."""
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")
    with RawClient(strict.url) as client:
        if method == "POST":
            client.send(post(PATH, CHAT, *offer))
        else:
            client.send("\r\n".join(["GET /health HTTP/1.1", "Host: localhost", *offer]).encode() + b"\r\n\r\n")
        assert client.read_all().startswith(b"HTTP/1.1 200")


def test_a_client_that_asks_before_it_sends(strict: RunningServer) -> None:
    request = post(PATH, CHAT, "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    with RawClient(strict.url) as client:
        client.send(head + b"\r\n\r\n")
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        assert client.read_all().startswith(b"HTTP/1.1 200")
