"""Other programs that read what we write, asked for tokens and logits; each runs in a process of its own.

A program of llama.cpp's family ends its process when it dislikes a file, so none is loaded into ours. Those that are
libraries (llama-cpp-python, node-llama-cpp) are driven by a small script beside this file, in the line protocol of
docs/interchange.md, which any executable may speak; llama-server is asked over HTTP (`foreign_server`).
"""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError, VerificationError

MARK = "@wf "  # begins each line that is an answer; a program may write others between them
SHOWN_LINES = 6
_HERE = Path(__file__).parent


class Reader(Protocol):
    """A foreign program that has loaded a model. Each request starts from an empty cache."""

    name: str
    version: str

    def tokenize(self, text: str) -> list[int]:
        """Return the tokens of a text, begin-of-text included where the program adds it."""
        ...

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        """Return the most likely tokens, one after another, past the end of the text where need be.

        Fewer than ``num_tokens`` where it does not tell the next one.
        """
        ...

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        """Return logits or log-probabilities ``[T - first, V]`` after ``tokens[first:]``; NaN where it tells none."""
        ...

    def close(self) -> None:
        """End the program."""
        ...


class Process:
    """A program as a child of ours that surely ends with us, and the last lines it wrote."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        try:
            self.child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            self._log.close()
            raise InputError(f"{command[0]}: cannot be run ({error.strerror}); give the program's own path") from error
        self._pending = b""

    def failed(self, what: str) -> VerificationError:
        """Return the error that says what went wrong, with the program's last lines; the program is ended."""
        self.close_streams()
        lines = self.last_lines()
        code = self.child.returncode
        ended = f" (exit status {code})" if code is not None and code != -9 else ""
        said = "; it said: " + " | ".join(lines) if lines else ""
        return VerificationError(f"{self.name}: {what}{ended}{said}")

    def last_lines(self) -> list[str]:
        """Return the last lines of what the program wrote to its standard error and, outside answers, its output."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 8192))
        text = (self._log.read() + b"\n" + self._pending).decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip() and MARK not in line][-SHOWN_LINES:]

    def send(self, line: str) -> None:
        """Write one line to the program. Raises: VerificationError when it is gone."""
        assert self.child.stdin is not None
        try:
            self.child.stdin.write(line.encode() + b"\n")
            self.child.stdin.flush()
        except OSError as error:
            self._wait(2.0)
            raise self.failed("ended before it was asked everything") from error

    def answer(self, seconds: float) -> str:
        """Return the next answer without its mark. Raises: VerificationError when none comes in time."""
        assert self.child.stdout is not None
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.child.stdout, selectors.EVENT_READ)
            while True:
                line, newline, rest = self._pending.partition(b"\n")
                if newline:
                    self._pending = rest
                    if line.startswith(MARK.encode()):
                        return line.decode("utf-8", "replace").removeprefix(MARK).strip()
                    continue
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.failed(f"gave no answer within {seconds:g} s")
                piece = os.read(self.child.stdout.fileno(), 1 << 16)
                if not piece:
                    self._wait(2.0)
                    raise self.failed("ended without an answer; it refused the model or broke down over it")
                self._pending = (self._pending + piece)[-(1 << 20) :]

    def _wait(self, seconds: float) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.child.wait(seconds)

    def close_streams(self) -> None:
        """End the program and everything it started."""
        if self.child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.child.pid, 9)
            self.child.wait()
        for stream in (self.child.stdin, self.child.stdout):
            if stream is not None:
                with suppress(OSError):  # what it never read cannot be flushed
                    stream.close()

    def close(self) -> None:
        """End the program and drop what it wrote."""
        self.close_streams()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()


class LineReader:
    """A reader behind the line protocol."""

    def __init__(self, name: str, command: Sequence[str], vocab_size: int, timeout_seconds: float) -> None:
        self.name = name
        self._vocab_size = vocab_size
        self._timeout = timeout_seconds
        self._process = Process(name, command)
        try:
            self.version = self._expect("ready")
        except BaseException:
            self._process.close()
            raise

    def _expect(self, kind: str) -> str:
        answer = self._process.answer(self._timeout)
        found, _, rest = answer.partition(" ")
        if found != kind:
            raise self._process.failed(f"answered {answer[:200]!r}, {kind!r} was expected")
        return rest

    def _tokens(self) -> list[int]:
        words = self._expect("tokens").split()
        if not all(word.isdecimal() and int(word) < self._vocab_size for word in words):
            raise self._process.failed(f"answered tokens outside the vocabulary of {self._vocab_size}")
        return [int(word) for word in words]

    def tokenize(self, text: str) -> list[int]:
        self._process.send(f"tokenize {text.encode().hex()}")
        return self._tokens()

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        self._process.send(f"greedy {num_tokens} {_words(prompt)}")
        tokens = self._tokens()
        if len(tokens) != num_tokens:
            raise self._process.failed(f"gave {len(tokens)} tokens, {num_tokens} were asked for")
        return tokens

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        rows = len(tokens) - first
        with tempfile.TemporaryDirectory(prefix="wf-reader-") as directory:
            path = Path(directory) / "logits"
            self._process.send(f"logits {path} {first} {_words(tokens)}")
            found = self._expect("logits")
            wanted = f"{rows} {self._vocab_size}"
            size = path.stat().st_size if path.is_file() else 0
            if found != wanted or size != 4 * rows * self._vocab_size:
                raise self._process.failed(f"gave logits [{found}] in {size} bytes, [{wanted}] in float32 are needed")
            return np.fromfile(path, "<f4").reshape(rows, self._vocab_size)

    def close(self) -> None:
        self._process.close()


def _words(tokens: Sequence[int]) -> str:
    return " ".join(str(int(token)) for token in tokens)


def open_line_program(program: Path, model: Path, vocab_size: int, context: int, timeout: float) -> Reader:
    """Start an executable that speaks the line protocol."""
    return LineReader(program.name, [str(program), str(model), str(context), _threads()], vocab_size, timeout)


def open_llama_cpp_python(program: Path | None, model: Path, vocab_size: int, context: int, timeout: float) -> Reader:
    """Start llama-cpp-python in this Python, or in the one at ``program``.

    Raises: InputError when it is not installed.
    """
    if program is None and find_spec("llama_cpp") is None:
        raise InputError(
            "llama-cpp-python is not installed here: pip install llama-cpp-python (it compiles llama.cpp, about ten "
            "minutes), or give the path of a Python that has it"
        )
    python = sys.executable if program is None else str(program)
    command = [python, str(_HERE / "readers" / "llama_cpp_python.py"), str(model), str(context), _threads()]
    return LineReader("llama-cpp-python", command, vocab_size, timeout)


def open_node_llama_cpp(program: Path | None, model: Path, vocab_size: int, context: int, timeout: float) -> Reader:
    """Start node-llama-cpp, the package at ``program`` or in the nearest node_modules.

    Raises: InputError when node or the package is missing.
    """
    node = shutil.which("node")
    package = program or _node_package()
    if node is None or package is None:
        missing = "node is not installed" if node is None else "no node_modules/node-llama-cpp here or above"
        raise InputError(
            f"node-llama-cpp: {missing}; install Node.js 20 or later, run `npm install node-llama-cpp` and export from "
            "that directory, or give the package's path"
        )
    script = str(_HERE / "readers" / "node_llama_cpp.mjs")
    command = [node, script, str(package.resolve()), str(model.resolve()), str(context), _threads()]
    return LineReader("node-llama-cpp", command, vocab_size, timeout)


def _node_package() -> Path | None:
    here = Path.cwd()
    paths = [directory / "node_modules" for directory in (here, *here.parents)]
    paths += [Path(path) for path in os.environ.get("NODE_PATH", "").split(os.pathsep) if path]
    found = (path / "node-llama-cpp" for path in paths)
    return next((path for path in found if (path / "package.json").is_file()), None)


def _threads() -> str:
    return os.environ.get("OMP_NUM_THREADS", "") or str(max(1, len(os.sched_getaffinity(0)) // 2))


Opener = Callable[[Path | None, Path, int, int, float], Reader]
