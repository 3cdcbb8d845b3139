"""A real `wf serve` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Self

import httpx

_START_SECONDS = 60
_PROGRAM = "import sys; from wrinklefree.cli.main import main; sys.exit(main())"


class ServedProcess:
    """``url`` without the /v1; ``client``: httpx on it; ``lines``: what it wrote on standard error so far.

    ``options``: words behind `wf serve MODEL`. ``environment``: variables beside those of the tests.
    ``python``: the interpreter that has wrinklefree. ``first``: a program that runs
    before the server's. ``stderr``: where lines go instead; ``port`` must be given then.
    """

    def __init__(
        self,
        model: Path,
        *options: str,
        ready: bool = True,
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
        first: str = "",
        port: int = 0,
        stderr: IO[str] | int = subprocess.PIPE,
    ) -> None:
        words = ["serve", str(model), "--port", str(port), "--threads", "1", *options]
        self.process = subprocess.Popen(
            [python, "-c", first + _PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
            text=True,
        )
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.url = f"http://127.0.0.1:{port}" if port else self._said_url()
            self.client = httpx.Client(base_url=self.url, timeout=60)
            if ready:
                self._wait_until_ready(told=not port)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    def _said_url(self) -> str:
        found = re.search(r"http://\S+?:\d+", self.wait_for("listening on "))
        assert found is not None
        return found[0]

    def _wait_until_ready(self, told: bool) -> None:
        if told:
            self.wait_for("ready: ")
            return
        end = time.monotonic() + _START_SECONDS
        while True:
            assert time.monotonic() < end and self.process.poll() is None, "the server did not start"
            try:
                if self.client.get("/openapi.json").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.02)

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line)
            self._news.put(line)
        self._news.put(None)

    def wait_for(self, text: str) -> str:
        """Return the next line on standard error with a text in it."""
        while True:
            line = self._news.get(timeout=_START_SECONDS)
            assert line is not None, f"the server ended without {text!r}: {''.join(self.lines)}"
            if text in line:
                return line

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(_START_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
