"""The processes of a run watch each other, so that the end of one ends all, soon and with a reason.

A process that waits for another in a collective operation may wait for ten minutes or longer after the other was
killed. So each keeps a TCP connection to the first: the system closes it when a process ends, however it ends. One
that ends in order says goodbye before.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from wrinklefree.errors import TrainingError
from wrinklefree.train.audit import say

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_GOODBYE = b"."
# For the main thread to notice by itself (gloo does at once, NCCL does not) and to end in order.
_GRACE_SECONDS = 15.0
_CONNECT_SECONDS = 60.0


class Peers:
    """A context in which the loss of a process raises TrainingError, or ends this one with exit code 1.

    ``on_loss`` is called with the message when the process must end without unwinding.
    """

    def __init__(self, fabric: Fabric, on_loss: Callable[[str], None] = lambda message: None) -> None:
        self._fabric = fabric
        self._on_loss = on_loss
        self._message: str | None = None
        self._lost = threading.Event()
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._links: list[socket.socket] = []

    def __enter__(self) -> Peers:
        if self._fabric.world_size > 1:
            self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What a collective raises when the other side is gone says nothing of it; the reason is known a moment later.
        unexplained = isinstance(error, RuntimeError) and not isinstance(error, TrainingError)
        if unexplained and self._links:
            self._lost.wait(3.0)
        self._leaving.set()
        for link in self._links:
            if error is None:
                _send(link, _GOODBYE)
            _hang_up(link)
        if unexplained and self._message is not None:
            raise TrainingError(self._message) from error

    def _connect(self) -> None:
        first = self._fabric.global_rank == 0
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        server = socket.create_server((host, 0), backlog=self._fabric.world_size) if first else None
        port = server.getsockname()[1] if server else 0
        port, token = self._fabric.broadcast((port, secrets.token_hex(16)))
        if server is None:
            link = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
            link.sendall(f"{token}{self._fabric.global_rank:08d}".encode())
            self._watch(link, 0)
        else:
            with server:
                server.settimeout(_CONNECT_SECONDS)
                while len(self._links) < self._fabric.world_size - 1:
                    link, _ = server.accept()
                    link.settimeout(_CONNECT_SECONDS)
                    greeting = _receive(link, len(token) + 8)
                    if hmac.compare_digest(greeting[: len(token)], token.encode()):
                        self._watch(link, int(greeting[len(token) :]))
                    else:
                        link.close()  # a stranger
        self._fabric.barrier()

    def _watch(self, link: socket.socket, rank: int) -> None:
        link.settimeout(None)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # notices a machine that is gone
        self._links.append(link)
        threading.Thread(target=self._wait_for, args=(link, rank), daemon=True, name=f"peer-{rank}").start()

    def _wait_for(self, link: socket.socket, rank: int) -> None:
        if _receive(link, 1) == _GOODBYE:
            return
        with self._lock:
            if self._leaving.is_set() or self._lost.is_set():
                return
            self._message = (
                f"process {rank} of this run ended unexpectedly (killed, out of memory, or an error of its own shown "
                "above), so training stops; the last saved state is intact and the same command resumes from it"
            )
            self._lost.set()
        if not self._leaving.wait(_GRACE_SECONDS):
            say(f"wf: {self._message}")
            self._on_loss(self._message)
            os._exit(1)


def launch(fabric: Fabric) -> None:
    """Start the processes of ``fabric``. `Peers` looks after them: Lightning's observer would kill without a word."""
    fabric.launch()
    started = getattr(getattr(fabric.strategy, "_launcher", None), "procs", None)
    if started:
        started.clear()  # the observer looks at this list, and ends when it is empty


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    with suppress(OSError):
        while len(data) < size and (piece := link.recv(size - len(data))):
            data += piece
    return data


def _send(link: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        link.sendall(data)


def _hang_up(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
    link.close()
