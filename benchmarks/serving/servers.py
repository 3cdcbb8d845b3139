"""The server processes: start them, stop their clocks while another is measured, see what they use."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.serving.client import Address

START_SECONDS = 180.0
STOP_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
MODEL_NAME = "bench"


class ServerError(Exception):
    """A server did not start, or ended; the text has the end of what it printed."""


@dataclass(frozen=True)
class Sizes:
    """What both servers are started with. ``context``: tokens of a slot. ``queue``: of ours, the peer has no limit."""

    threads: int
    slots: int
    context: int
    queue: int = 64


def our_command(model: str, sizes: Sizes, port: int, extra: Sequence[str] = ()) -> list[str]:
    """Return the call of ``wf serve`` in the Python that runs this."""
    program = "import sys; sys.argv[0] = 'wf'; from wrinklefree.cli.main import main; sys.exit(main())"
    numbers = {
        "--port": port, "--threads": sizes.threads, "--slots": sizes.slots, "--ctx": sizes.context,
        "--queue": sizes.queue,
    }  # fmt: skip
    flags = [word for name, value in numbers.items() for word in (name, str(value))]
    return [sys.executable, "-c", program, "serve", model, "--name", MODEL_NAME, *flags, *extra]


def llama_command(program: str, gguf: str, sizes: Sizes, port: int, extra: Sequence[str] = ()) -> list[str]:
    """Return the call of llama-server: as many slots, each with as long a context, the rest as it comes."""
    numbers = {
        "--port": port, "--threads": sizes.threads, "--parallel": sizes.slots,
        "--ctx-size": sizes.slots * sizes.context,
    }  # fmt: skip
    flags = [word for name, value in numbers.items() for word in (name, str(value))]
    return [program, "--model", gguf, "--alias", MODEL_NAME, "--host", "127.0.0.1", *flags, *extra]


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server that answers /health with 200; ``address``: where."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: IO[bytes], command: Sequence[str]) -> None:
        self.address = Address("127.0.0.1", port, MODEL_NAME)
        self.command = list(command)
        self._process = process
        self._log = log
        self._paused = False

    @property
    def _proc(self) -> Path:
        return Path("/proc") / str(self._process.pid)

    def pause(self) -> None:
        """Take its processors away, so that it cannot disturb what is measured."""
        if not self._paused and self._process.poll() is None:
            self._process.send_signal(signal.SIGSTOP)
            self._paused = True

    def resume(self) -> None:
        """Let it go on."""
        if self._paused:
            self._process.send_signal(signal.SIGCONT)
            self._paused = False

    def cpu_seconds(self) -> float:
        """Processor time used so far. Raises: ServerError when the process has ended."""
        self._alive()
        fields = (self._proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def threads_cpu_seconds(self) -> dict[str, float]:
        """Processor time so far by name of thread, those of one name together."""
        found: dict[str, float] = {}
        for task in (self._proc / "task").iterdir():
            name, rest = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            fields = rest.split()
            found[name] = found.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
        return found

    def memory_bytes(self) -> int:
        """Resident memory. Raises: ServerError when the process has ended."""
        self._alive()
        for line in (self._proc / "status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(list((self._proc / "fd").iterdir()))

    def output_tail(self) -> str:
        """The end of what the process printed."""
        self._log.flush()
        return Path(self._log.name).read_bytes()[-2000:].decode(errors="replace").strip()

    def _alive(self) -> None:
        if self._process.poll() is not None:
            raise ServerError(f"{self.command[0]} ended with status {self._process.returncode}: {self.output_tail()}")

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        url = f"http://{self.address.host}:{self.address.port}/health"
        while time.monotonic() < end:
            self._alive()
            try:
                with urllib.request.urlopen(url, timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.1)
        raise ServerError(f"{self.command[0]}: not ready after {START_SECONDS:g} s: {self.output_tail()}")

    def _stop(self) -> int | None:
        self.resume()
        self._process.terminate()
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None


def end_servers_with_us() -> None:
    """Let SIGTERM end this process by way of its ``with`` blocks: no server, least of all a paused one, is left."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


@contextmanager
def running(command: Sequence[str], port: int, environment: dict[str, Any] | None = None) -> Iterator[ServerProcess]:
    """Start a server, give it when it is ready, stop it with SIGTERM. Raises: ServerError."""
    with tempfile.NamedTemporaryFile(prefix="serving-", suffix=".log") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        server = ServerProcess(process, port, log, command)
        try:
            server._wait_until_ready()
            yield server
        finally:
            server._stop()
