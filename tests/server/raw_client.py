"""HTTP spoken by hand over a socket: for clients that no library would be."""

from __future__ import annotations

import json
import socket
from typing import Any, Self
from urllib.parse import urlsplit

_PATIENCE_SECONDS = 60


def post(path: str, body: Any, *headers: str) -> bytes:
    """Return a whole request with a JSON body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             f"Content-Length: {len(content)}", *headers]  # fmt: skip
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class RawClient:
    """A connection; ``receive_buffer`` bytes make a reader with little room."""

    def __init__(self, url: str, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        self.socket = socket.socket()
        self.socket.settimeout(_PATIENCE_SECONDS)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.connect((parts.hostname, parts.port))

    def send(self, data: bytes) -> None:
        """Send; a server that has closed meanwhile is found out by reading."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def read_until(self, text: bytes) -> bytes:
        """Return what comes up to and with ``text``, and whatever came in the same piece."""
        found = b""
        while text not in found:
            piece = self.socket.recv(65536)
            assert piece, f"the connection ended behind {found!r}"
            found += piece
        return found

    def read_all(self) -> bytes:
        """Return everything until the server closes the connection."""
        found = []
        try:
            while piece := self.socket.recv(65536):
                found.append(piece)
        except ConnectionResetError:
            pass
        return b"".join(found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def status_and_error(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Return the status of an answer and its error object."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), json.loads(body)["error"]
