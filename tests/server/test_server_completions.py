"""Chat and text completions over HTTP are the engine's own answers to the same ids, whole and as streams."""

from __future__ import annotations

from typing import Any

import pytest
from running_server import RunningServer
from sse_reading import chunks

from wrinklefree.engine import Engine, SamplingParams

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def alone(toy: Any) -> Engine:
    return Engine.load(toy, threads=1, context=512)


def reference(alone: Engine, prompt: list[int] | str, **params: Any) -> Any:
    return alone.generate(prompt, SamplingParams(temperature=params.pop("temperature", 1.0), top_p=1.0, **params)).run()


def test_chat_whole_and_as_a_stream(server: RunningServer, alone: Engine) -> None:
    ids = alone.tokenizer.encode_chat(HELLO)
    expected = reference(alone, ids, max_tokens=20, seed=5)
    body = {"model": "toy", "messages": HELLO, "max_tokens": 20, "seed": 5}
    whole = server.client.post("/v1/chat/completions", json=body).json()
    assert whole["object"] == "chat.completion"
    choice = whole["choices"][0]
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", expected.text)
    assert choice["finish_reason"] == expected.finish_reason
    assert whole["usage"]["prompt_tokens"] == len(ids)
    assert whole["usage"]["completion_tokens"] == len(expected.tokens)
    assert (whole["wrinklefree"]["mode"], whole["wrinklefree"]["seed"]) == ("ar", 5)
    found = chunks(server.client, "/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert len({one["id"] for one in found}) == 1
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in found[:-1]) == expected.text
    assert [one["choices"][0]["finish_reason"] for one in found[-2:-1]] == [expected.finish_reason]
    assert found[-1]["choices"] == []
    assert found[-1]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert all(one["usage"] is None for one in found[:-1])
    assert found[-2]["wrinklefree"]["forwards"] == len(expected.tokens)


@pytest.mark.parametrize("prompt", ["once", ["once", "upon"], [72, 73, 74], [[72, 73], [74]]])
def test_prompts_of_all_four_forms_with_n(server: RunningServer, alone: Engine, prompt: Any) -> None:
    many = prompt if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]
    body = {"prompt": prompt, "n": 2, "max_tokens": 6, "seed": 8, "temperature": 0.8}
    expected = [reference(alone, one, max_tokens=6, seed=8 + i, temperature=0.8) for one in many for i in range(2)]
    whole = server.client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in whole["choices"]] == list(range(len(expected)))
    assert [choice["text"] for choice in whole["choices"]] == [one.text for one in expected]
    assert whole["usage"]["prompt_tokens"] == sum(one.prompt_tokens for one in expected[::2])
    streamed = [""] * len(expected)
    for chunk in chunks(server.client, "/v1/completions", body):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == [one.text for one in expected]


def test_a_watched_stream_shows_each_pass(server: RunningServer) -> None:
    found = chunks(server.client, "/v1/completions", {"prompt": "abc", "max_tokens": 5, "seed": 1, "watch": True})
    seen = [one for chunk in found for one in chunk.get("wrinklefree", {}).get("passes", [])]
    assert [one["rows"] for one in seen] == [[-3, -1], [0, 0], [1, 1], [2, 2], [3, 3]]
    assert [one["decided"][0][0] for one in seen] == [0, 1, 2, 3, 4]
