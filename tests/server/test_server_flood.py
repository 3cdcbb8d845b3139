"""A full server says so at once: nothing is spent on a request that it will not take."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from running_server import RunningServer, chat_toy

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy whose answers can be long enough not to end by themselves meanwhile."""
    return chat_toy(tmp_path_factory.mktemp("flood") / "toy", max_position_embeddings=32_768)


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_full_server_refuses_before_it_reads_the_prompt(large: Path, path: str) -> None:
    """A prompt beyond the context is only found out by tokenizing it: 429 while full, 400 once there is room."""
    endless = {"prompt": "ab", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    text = "x" * 40_000
    long = {"prompt": text} if path != CHAT else {"messages": [{"role": "user", "content": text}]}
    with RunningServer(large, slots=1, context=32_768, queue=0) as server:
        with server.client.stream("POST", "/v1/completions", json=endless) as stream:
            events = stream.iter_bytes()  # an iterator that is dropped closes the connection
            next(events)
            refused = server.client.post(path, json=long)
            assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
            assert refused.json()["error"]["code"] == "queue_full"
        statistics = server.app.state.server.scheduler.statistics
        assert (statistics.received, statistics.refused["queue_full"]) == (2, 1)
        end = time.monotonic() + 30
        while (answer := server.client.post(path, json=long)).status_code == 429 and time.monotonic() < end:
            time.sleep(0.01)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
