"""Embeddings over HTTP against the engine's own, through OpenAI's client; and what is refused."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from running_server import MODEL, RunningServer

TEXTS = ["a short one", "ein längerer Text, der anders ist", "a short one"]


def client_of(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_vectors_are_the_engines(server: RunningServer) -> None:
    answer = client_of(server).embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    assert [one.index for one in answer.data] == [0, 1, 2]
    ids = [server.engine.tokenizer.encode(text) for text in TEXTS]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    for one, wanted in zip(answer.data, ids, strict=True):
        np.testing.assert_array_equal(np.float32(one.embedding), server.engine.embed(wanted))
    assert answer.data[0].embedding == answer.data[2].embedding
    assert abs(sum(x * x for x in answer.data[1].embedding) - 1) < 1e-6


def test_every_form_of_input_and_answer(server: RunningServer) -> None:
    def ask(**body: Any) -> Any:
        answer = server.client.post("/v1/embeddings", json=body)
        assert answer.status_code == 200, answer.text
        return [one["embedding"] for one in answer.json()["data"]]

    ids = server.engine.tokenizer.encode(TEXTS[0])
    (vector,) = ask(input=TEXTS[0])
    assert ask(input=[TEXTS[0]]) == ask(input=ids) == [vector]
    assert ask(input=[ids, ids[:3]])[0] == vector
    assert ask(input=ids, dimensions=server.engine.hidden_size, user="me") == [vector]
    (packed,) = ask(input=ids, encoding_format="base64")
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.float32(vector))
    (raw,) = ask(input=ids, normalize=False)
    np.testing.assert_array_equal(np.float32(raw), server.engine.embed(ids, normalize=False))
    by_default = client_of(server).embeddings.create(model=MODEL, input=TEXTS[0])  # that client asks for base64
    assert by_default.data[0].embedding == pytest.approx(vector, abs=1e-7)


def test_more_inputs_than_there_is_room_for_beside_answers(toy: Any) -> None:
    # Two answers hold the slots, one more may wait: the second input of a list waits outside, nothing is refused.
    texts = [f"text number {i} " * (i % 5 + 1) for i in range(6)]
    with RunningServer(toy, slots=2, queue=1) as server:
        client = client_of(server)

        def stream() -> Any:
            body: Any = {"model": MODEL, "prompt": "go", "max_tokens": 400, "temperature": 0, "stream": True}
            return client.completions.create(**body, extra_body={"ignore_eos": True})

        streams = [stream(), stream()]
        for one in streams:
            next(iter(one))
        data = client.embeddings.create(model=MODEL, input=texts, encoding_format="float").data
        finished = [[chunk.choices[0].finish_reason for chunk in one][-1] for one in streams]
        wanted = [server.engine.tokenizer.encode(text) for text in texts]
    assert finished == ["length", "length"]
    for one, ids in zip(data, wanted, strict=True):
        np.testing.assert_array_equal(np.float32(one.embedding), server.engine.embed(ids))


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"input": []}, 400, "input", "found an empty list"),
        ({"input": ""}, 400, "input", "found no token"),
        ({}, 400, "input", "missing"),
        ({"input": "a", "dimensions": 7}, 400, "dimensions", "found 7, this model's vectors have 64"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format", "found 'hex'"),
        ({"input": "a", "model": "other"}, 404, "model", "found 'other'"),
        ({"input": "a", "normalise": True}, 400, "normalise", "did you mean 'normalize'"),
        ({"input": [1, 300]}, 400, None, "found token 300"),
        ({"input": "x" * 600}, 400, "input", "maximum context length is 512"),
    ],
)
def test_what_is_refused(server: RunningServer, body: Any, status: int, param: str | None, says: str) -> None:
    answer = server.client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, says in error["message"]) == (status, True), answer.text
    if param is not None:
        assert error["param"] == param


def test_a_client_that_leaves_takes_its_inputs_along(toy: Any) -> None:
    texts = [f"{i:03} " * 120 for i in range(250)]
    with RunningServer(toy, slots=1) as server:
        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/v1/embeddings", json={"input": texts}, timeout=httpx.Timeout(10, read=0.1))
        for _ in range(1000):
            if "\nwrinklefree_requests_in_progress 1.0\n" in server.client.get("/metrics").text:  # this one
                break
            time.sleep(0.01)
        scheduler = server.app.state.server.scheduler
        assert scheduler.statistics.received < len(texts)
        assert server.client.post("/v1/embeddings", json={"input": "next"}).status_code == 200
