"""llama-server, asked over HTTP on a port of this machine: token ids as prompts, log-probabilities of the likeliest.

It gives no logits, and log-probabilities of as many tokens as one asks for; `TOP` of each position are compared.
Each request is for one token, because a server that meets an end-of-text token stops there; what it has read stays in
its cache from one request to the next.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import InputError
from wrinklefree.export.foreign_programs import Process, Reader

TOP = 100  # tokens of each position whose log-probabilities are compared
_MAX_ANSWER_BYTES = 64 << 20


class ServerReader:
    """A llama-server of its own, which ends with us."""

    name = "llama-server"

    def __init__(self, program: Path, model: Path, vocab_size: int, context: int, timeout: float) -> None:
        self._vocab_size, self._timeout = vocab_size, timeout
        self._port = _free_port()
        # Threads are left to the server, unless this process was told how many to use.
        threads = os.environ.get("OMP_NUM_THREADS", "")
        command = [str(program), "-m", str(model), "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["-c", str(context), "-np", "1", "-ngl", "0", *(("-t", threads) if threads else ())]
        self._process = Process(program.name, command)
        try:
            self._await_start()
            settings = self._ask("GET", "/props")
            self.version = str(settings.get("build_info", "unknown version"))
        except BaseException:
            self._process.close()
            raise

    def _await_start(self) -> None:
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            if self._process.child.poll() is not None:
                raise self._process.failed("did not start; it refused the model or an argument")
            try:
                status, _ = self._exchange("GET", "/health", None, 5.0)
            except (OSError, http.client.HTTPException):
                status = 0
            if status == 200:
                return
            time.sleep(0.1)
        raise self._process.failed(f"was not ready within {self._timeout:g} s")

    def _exchange(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=seconds)
        try:
            data = None if body is None else json.dumps(body)
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read(_MAX_ANSWER_BYTES)
        finally:
            connection.close()

    def _ask(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        """Return the object a request is answered with. Raises: VerificationError for anything else."""
        try:
            status, data = self._exchange(method, path, body, self._timeout)
        except TimeoutError as error:
            raise self._process.failed(f"did not answer {path} within {self._timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise self._process.failed(f"broke off over {path} ({type(error).__name__})") from error
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._process.failed(f"answered {path} with something that is not JSON: {data[:80]!r}") from error
        if status != 200 or not isinstance(found, dict):
            raise self._process.failed(f"answered {path} with status {status}: {data[:200]!r}")
        return found

    def tokenize(self, text: str) -> list[int]:
        found = self._ask("POST", "/tokenize", {"content": text, "add_special": True, "parse_special": True})
        tokens = found.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise self._process.failed(f"answered /tokenize without tokens: {str(found)[:200]}")
        return tokens

    def greedy(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        tokens = [int(token) for token in prompt]
        for _ in range(num_tokens):
            likeliest = self._likeliest(tokens, 1)
            if not likeliest:
                break
            tokens.append(likeliest[0][0])
        return tokens[len(prompt) :]

    def logits(self, tokens: Sequence[int], first: int) -> NDArray[np.float32]:
        out = np.full((len(tokens) - first, self._vocab_size), np.nan, np.float32)
        for row, end in enumerate(range(first + 1, len(tokens) + 1)):
            for token, log_probability in self._likeliest([int(token) for token in tokens[:end]], TOP):
                out[row, token] = log_probability
        return out

    def _likeliest(self, prompt: list[int], count: int) -> list[tuple[int, float]]:
        """Return the likeliest tokens after a prompt and their log-probabilities, the likeliest first.

        None where the likeliest one ends within a character: the program then holds back text and probabilities.
        """
        request = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": True}
        found = self._ask("POST", "/completion", request)
        if "completion_probabilities" not in found and str(found.get("content", "")).endswith("\ufffd"):
            return []
        try:
            listed = found["completion_probabilities"][0]
            if "top_logprobs" not in listed:
                raise InputError(
                    f"{self._process.name}: is too old to name tokens by id; build "
                    "benchmarks/foreign_readers/reader.cpp against its library and give that"
                )
            pairs = [(entry["id"], float(entry["logprob"])) for entry in listed["top_logprobs"]]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise self._process.failed(f"answered /completion without probabilities: {str(found)[:200]}") from error
        if not pairs or not all(isinstance(token, int) and 0 <= token < self._vocab_size for token, _ in pairs):
            raise self._process.failed(f"named tokens outside the vocabulary of {self._vocab_size}")
        return sorted(pairs, key=lambda pair: -pair[1])

    def close(self) -> None:
        self._process.close()


def open_llama_server(program: Path, model: Path, vocab_size: int, context: int, timeout: float) -> Reader:
    """Start the llama-server at ``program``. Raises: InputError when it cannot be run, VerificationError."""
    return ServerReader(program, model, vocab_size, context, timeout)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
