"""Log-probabilities in OpenAI's two forms are the engine's own, name the tokens' bytes, and stream in parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from running_server import RunningServer
from sse_reading import chunks

from wrinklefree.engine import Engine, SamplingParams

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 12, "seed": 4}


@pytest.fixture(scope="module")
def alone(toy: Path) -> Engine:
    return Engine.load(toy, threads=1, context=512)


def test_chat_form(server: RunningServer, alone: Engine) -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 3}
    prompt = alone.tokenizer.encode_chat(CHAT["messages"])  # type: ignore[arg-type]
    params = SamplingParams(max_tokens=12, seed=4, temperature=1.0, top_p=1.0, logprobs=3)
    steps = list(alone.generate(prompt, params))
    content = server.client.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    assert [one["logprob"] for one in content] == [step.logprob for step in steps]
    assert [one["bytes"] for one in content] == [list(alone.tokenizer.token_bytes(step.token)) for step in steps]
    tops = [[(top["bytes"][0], top["logprob"]) for top in one["top_logprobs"]] for one in content]
    own = [[(alone.tokenizer.token_bytes(token)[0], score) for token, score in step.best] for step in steps]
    assert tops == own
    streamed = [
        one
        for chunk in chunks(server.client, "/v1/chat/completions", body)
        for one in (chunk["choices"][0].get("logprobs") or {"content": []})["content"]
    ]
    assert streamed == content


def test_text_form(server: RunningServer, alone: Engine) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 40, "seed": 4, "logprobs": 2}
    params = SamplingParams(max_tokens=40, seed=4, temperature=1.0, top_p=1.0, logprobs=2)
    steps = list(alone.generate("abc", params))
    choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
    scores, text = choice["logprobs"], choice["text"]
    assert scores["token_logprobs"] == [step.logprob for step in steps]
    assert scores["tokens"][0] in scores["top_logprobs"][0]
    for step, top in zip(steps, scores["top_logprobs"], strict=True):
        assert sorted(top.values(), reverse=True)[:2] == [score for _, score in step.best]
    # Whole characters stand where their offset says.
    for offset, name in zip(scores["text_offset"], scores["tokens"], strict=True):
        assert name.startswith("bytes:") or name == "</s>" or text[offset : offset + len(name)] == name
    parts: dict[str, list[Any]] = {key: [] for key in scores}
    for chunk in chunks(server.client, "/v1/completions", body):
        for key, values in (chunk["choices"][0]["logprobs"] or {}).items():
            parts[key] += values
    assert parts == scores


def test_tokens_by_id(server: RunningServer, alone: Engine) -> None:
    body = {"prompt": [65, 66], "max_tokens": 6, "temperature": 0, "logprobs": 1, "return_tokens_as_token_ids": True}
    scores = server.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    expected = alone.generate([65, 66], SamplingParams(max_tokens=6, temperature=0, logprobs=1)).run()
    assert scores["tokens"] == [f"token_id:{token}" for token in expected.tokens]
    assert [next(iter(top)) for top in scores["top_logprobs"]] == scores["tokens"], "greedy: the best is the token"


def test_banned_tokens_have_numbers_that_json_knows(server: RunningServer) -> None:
    body = {"prompt": "a", "max_tokens": 2, "temperature": 0, "logprobs": 100}
    scores = server.client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert all(math.isfinite(value) for top in scores["top_logprobs"] for value in top.values())
