"""An echoed prompt has the log-probabilities that the model's logits give its tokens, as evaluation harnesses need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running_server import RunningServer, chat_toy
from sse_reading import chunks

from wrinklefree.engine import Engine

TEXT = "The quick brown fox jumps over the lazy dog. " * 4


@pytest.fixture(scope="module")
def alone(toy: Path) -> Engine:
    return Engine.load(toy, threads=1, context=512)


def log_softmax(logits: Any) -> Any:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@pytest.mark.parametrize("max_tokens", [0, 1, 3])
def test_scores_of_a_prompt(server: RunningServer, alone: Engine, max_tokens: int) -> None:
    prompt = alone.tokenizer.encode(TEXT)
    body = {"prompt": prompt, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "temperature": 0}
    answer = server.client.post("/v1/completions", json=body).json()
    choice, scores = answer["choices"][0], answer["choices"][0]["logprobs"]
    assert choice["text"].startswith(TEXT)
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert len(scores["tokens"]) == len(prompt) + max_tokens
    expected = log_softmax(alone.logits(prompt))
    own = [expected[t, token] for t, token in enumerate(prompt[1:])]
    assert scores["token_logprobs"][0] is None and scores["top_logprobs"][0] is None
    np.testing.assert_allclose(scores["token_logprobs"][1 : len(prompt)], own, atol=2e-4)
    for t, top in enumerate(scores["top_logprobs"][1 : len(prompt)]):
        assert max(top.values()) == pytest.approx(expected[t].max(), abs=2e-4)
        assert scores["token_logprobs"][t + 1] in top.values()
    if max_tokens:
        silent = server.client.post("/v1/completions", json={**body, "echo": False, "logprobs": None}).json()
        assert choice["text"] == TEXT + silent["choices"][0]["text"]


def test_a_stream_begins_with_the_prompt(server: RunningServer) -> None:
    body = {"prompt": ["one", "two"], "echo": True, "logprobs": 1, "max_tokens": 4, "n": 2, "seed": 2}
    whole = server.client.post("/v1/completions", json=body).json()["choices"]
    texts = [""] * 4
    scores: list[dict[str, list[Any]]] = [{} for _ in range(4)]
    for chunk in chunks(server.client, "/v1/completions", body):
        choice = chunk["choices"][0]
        texts[choice["index"]] += choice["text"]
        for key, values in (choice["logprobs"] or {}).items():
            scores[choice["index"]].setdefault(key, []).extend(values)
    assert texts == [choice["text"] for choice in whole]
    assert scores == [choice["logprobs"] for choice in whole]


def test_a_prompt_alone_in_a_stream(server: RunningServer) -> None:
    body = {"prompt": "héé", "echo": True, "max_tokens": 0}
    found = chunks(server.client, "/v1/completions", body)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == "héé"
    assert found[-1]["choices"][0]["finish_reason"] == "length"


def test_offsets_are_of_the_text_behind_a_first_token_that_is_not_written(tmp_path: Path) -> None:
    with RunningServer(chat_toy(tmp_path / "bos", post_processor_bos=True), slots=1) as server:
        body = {"prompt": "abc", "echo": True, "max_tokens": 0, "logprobs": 0}
        choice = server.client.post("/v1/completions", json=body).json()["choices"][0]
        assert (choice["text"], choice["logprobs"]["tokens"]) == ("abc", ["<s>", "a", "b", "c"])
        assert choice["logprobs"]["text_offset"] == [0, 0, 1, 2]
        choice = server.client.post("/v1/completions", json={**body, "prompt": [256, 64, 65]}).json()["choices"][0]
        assert (choice["text"], choice["logprobs"]["text_offset"]) == ("<s>ab", [0, 3, 4])


def test_more_scores_than_can_be_sent_are_refused(server: RunningServer) -> None:
    body = {"prompt": [TEXT] * 60, "echo": True, "logprobs": 100, "max_tokens": 1}
    answer = server.client.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "logprobs")
