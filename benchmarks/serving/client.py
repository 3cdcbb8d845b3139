"""The cheapest HTTP/1.1 client that measures: it notes when bytes arrive and reads them after the measurement.

It shares the machine's cores with the server, so nothing is parsed while a load runs, but for the status and the end
of an answer. A connection carries one request: what a server does with idle connections cannot change a figure.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

_LAST_CHUNK = b"0\r\n\r\n"
CONNECT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and the name of its model."""

    host: str
    port: int
    model: str


@dataclass(slots=True)
class Exchange:
    """One request and its answer as it came; times are of `perf_counter`.

    ``error``: why there is no whole answer ('' where there is one): the connection broke, or a time-out.
    """

    number: int
    sent: float = 0.0
    ended: float = 0.0
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""

    @property
    def status(self) -> int:
        """The HTTP status, 0 before it has come."""
        head = b""
        for _, data in self.arrivals:
            head += data
            if len(head) >= 12:
                break
        return int(head[9:12]) if head.startswith(b"HTTP/1.1 ") and len(head) >= 12 else 0

    @property
    def seconds(self) -> float:
        """From sending to the last byte."""
        return self.ended - self.sent


class _Connection(asyncio.Protocol):
    def __init__(self, payload: bytes, exchange: Exchange, done: asyncio.Future[None]) -> None:
        self._payload = payload
        self._exchange = exchange
        self._done = done
        self._head: bytes | None = b""  # what came of it; None when it is whole
        self._length: int | None = None  # of the whole answer, where the head says it
        self._received = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._exchange.sent = perf_counter()
        transport.write(self._payload)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        exchange.arrivals.append((perf_counter(), data))
        self._received += len(data)
        if self._head is not None:
            self._head += data
            if b"\r\n\r\n" not in self._head:
                return
            self._length, self._head = _length_of(self._head), None
        self._tail = data[-5:] if len(data) >= 5 else (self._tail + data)[-5:]  # its last bytes may come in two pieces
        if self._received == self._length or (self._length is None and self._tail == _LAST_CHUNK):
            self._end("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection ended early ({exc or 'closed by the server'})")

    def _end(self, error: str) -> None:
        if not self._done.done():
            self._exchange.ended = perf_counter()
            self._exchange.error = error
            self._done.set_result(None)


def _length_of(head: bytes) -> int | None:
    """Return the length of a whole answer with a Content-Length."""
    end = head.find(b"\r\n\r\n")
    for line in head[:end].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return end + 4 + int(value)
    return None


def payload(address: Address, path: str, body: dict[str, Any]) -> bytes:
    """Return the bytes of a POST request."""
    data = json.dumps({"model": address.model, **body}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address.host}:{address.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data


async def ask(address: Address, data: bytes, exchange: Exchange, seconds: float = 300.0) -> Exchange:
    """Send a request, let ``exchange`` hold what comes and return it, whatever became of it.

    It is given up after ``seconds``. Cancelling closes the connection, as a client does that is gone.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    try:
        transport, _ = await asyncio.wait_for(
            loop.create_connection(lambda: _Connection(data, exchange, done), address.host, address.port),
            CONNECT_SECONDS,
        )
    except (OSError, TimeoutError) as error:
        exchange.sent = exchange.sent or perf_counter()
        exchange.ended = perf_counter()
        exchange.error = f"no connection ({type(error).__name__})"
        return exchange
    try:
        await asyncio.wait_for(done, seconds)
    except TimeoutError:
        exchange.ended = perf_counter()
        exchange.error = f"no end within {seconds:g} s"
    finally:
        transport.abort()
    return exchange
