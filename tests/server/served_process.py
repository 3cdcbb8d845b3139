"""A real `wf serve` in a process of its own."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

import httpx

_START_SECONDS = 60
_PROGRAM = "import sys; from wrinklefree.cli.main import main; sys.exit(main())"


class ServedProcess:
    """``url`` without the /v1; ``client``: httpx on it; ``lines``: what it wrote on standard error so far.

    ``options``: words behind `wf serve MODEL`. ``environment``: variables beside those of the tests.
    ``python``: the interpreter that has wrinklefree.
    """

    def __init__(
        self,
        model: Path,
        *options: str,
        ready: bool = True,
        environment: dict[str, str] | None = None,
        python: str = sys.executable,
        **popen: Any,
    ) -> None:
        words = ["serve", str(model), "--port", "0", "--threads", "1", *options]
        self.process = subprocess.Popen(
            [python, "-c", _PROGRAM, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
            text=True,
            **popen,
        )
        self.lines: list[str] = []
        self._news: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            found = re.search(r"http://\S+?:\d+", self.wait_for("listening on "))
            assert found is not None
            self.url = found[0]
            if ready:
                self.wait_for("ready: ")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
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
            assert stream is not None
            stream.close()
