"""A real server over a real socket, in a thread of the test's process; and models for it."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path
from typing import Any, Self

import httpx
import tokenizer_toys
import uvicorn
from diffusion_models import marker_of
from toy_models import BASE, write_toy

from wrinklefree.engine import Engine
from wrinklefree.server.app import create_app
from wrinklefree.server.run import server_config
from wrinklefree.server.settings import ServerSettings

MODEL = "toy"


def chat_toy(
    directory: Path, template: str = tokenizer_toys.CHATML, post_processor_bos: bool = False, **config: Any
) -> Path:
    """Write a packed toy model of 258 tokens (bytes, then <s> and </s>) with random weights and a ChatML template."""
    write_toy(directory, {**BASE, "vocab_size": 258, "eos_token_id": 257, **config}, "row", 64, seed=3)
    return tokenizer_toys.write(directory, template=template, post_processor_bos=post_processor_bos)


def diffusion_chat_toy(directory: Path, kind: str = "causal", block_size: int = 8, **options: Any) -> Path:
    """Write `chat_toy` with one token more, MASK, and the marker of a diffusion model; ``kind`` as in `KINDS`."""
    chat_toy(directory, vocab_size=259, **options)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["wrinklefree"]["dlm"] = {**marker_of(kind, block_size).to_json(), "mask_token_id": 258}
    path.write_text(json.dumps(config))
    return directory


class RunningServer:
    """``url`` without the /v1; ``client``: httpx on it. ``slots``: of answers at a time."""

    def __init__(self, model: Path, slots: int = 4, context: int = 512, **settings: Any) -> None:
        self.settings = ServerSettings(MODEL, slots=slots, **settings)
        held = slots + self.settings.cached_prompts
        self.engine = Engine.load(model, threads=1, context=context, slots=held + 1)  # one for the test's own answers
        self.app = create_app(self.engine, self.settings)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._server = uvicorn.Server(server_config(self.app, self.settings))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "the server did not stop"
        self._socket.close()
