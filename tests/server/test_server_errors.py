"""Whatever a client does wrong, the answer is OpenAI's error object with the field's name, and the server lives on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from running_server import RunningServer

from wrinklefree.server.schemas.fields import WITHOUT_MEANING

MESSAGE = {"role": "user", "content": "a"}
TEXTS: list[tuple[dict[str, Any], str | None]] = [
    ({}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, 300]}, "prompt"),
    ({"prompt": "x" * 2000}, "prompt"),
    ({"prompt": ["a"] * 257}, "prompt"),
    ({"prompt": ["a"] * 40, "n": 2}, "prompt"),
    ({"prompt": "a", "stop": ["a", 3]}, "stop"),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stop": ["a"] * 17}, "stop"),
    ({"prompt": "a", "temperature": 101}, "temperature"),
    ({"prompt": "a", "temperature": "1"}, "temperature"),
    ({"prompt": "a", "temperature": float("nan")}, "temperature"),
    ({"prompt": "a", "n": 9}, "n"),
    ({"prompt": "a", "n": True}, "n"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "mode": "block"}, "mode"),
    ({"prompt": "a", "mode": "x"}, "mode"),
    ({"prompt": "a", "mode": "speculative", "echo": True, "logprobs": 0}, "mode"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
    ({"prompt": "a", "logit_bias": {"300": 1}}, "logit_bias"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "tempratur": 1}, "tempratur"),
    ({"prompt": "a", "watch": True}, "watch"),
    ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
    ({"prompt": "a", "stream": True, "stream_options": {"include": True}}, "stream_options"),
    ({"prompt": "a", "entropy_bound": 1.0, "tokens_per_forward": 2}, "tokens_per_forward"),
]
CHATS: list[tuple[dict[str, Any], str | None]] = [
    ({}, "messages"),
    ({"messages": [MESSAGE], "max_tokens": 0}, "max_tokens"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "x", "content": "a"}]}, "messages"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///"}}]}]},
        "messages",
    ),
    ({"messages": [MESSAGE], "max_tokens": 0}, "max_tokens"),
    ({"messages": [MESSAGE], "top_logprobs": 2}, "top_logprobs"),
    ({"messages": [MESSAGE], "functions": []}, "functions"),
    ({"messages": [MESSAGE], "modalities": ["audio"]}, "modalities"),
]


def check(answer: Any, status: int, param: str | None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["param"] == param, error
    assert 10 < len(error["message"]) < 400
    assert "/" not in error["message"].replace("/v1/", ""), "no path"
    return error


@pytest.mark.parametrize(("body", "param"), TEXTS, ids=lambda value: str(value)[:50])
def test_wrong_texts(server: RunningServer, body: dict[str, Any], param: str | None) -> None:
    content = json.dumps(body)
    headers = {"Content-Type": "application/json"}
    found = check(server.client.post("/v1/completions", content=content, headers=headers), 400, param)
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(("body", "param"), CHATS, ids=lambda value: str(value)[:50])
def test_wrong_chats(server: RunningServer, body: dict[str, Any], param: str | None) -> None:
    check(server.client.post("/v1/chat/completions", json=body), 400, param)


def test_an_unknown_field_gets_the_nearest_name(server: RunningServer) -> None:
    error = check(server.client.post("/v1/completions", json={"prompt": "a", "max_token": 1}), 400, "max_token")
    assert (error["code"], "'max_tokens'" in error["message"]) == ("unknown_parameter", True)


def test_another_model_is_not_found(server: RunningServer) -> None:
    error = check(server.client.post("/v1/completions", json={"prompt": "a", "model": "gpt-9"}), 404, "model")
    assert (error["type"], error["code"]) == ("not_found_error", "model_not_found")


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"\xff\xfe\xfa", "application/json", 400),
        (b'{"prompt": "\xff"}', "application/json", 400),
        (b"[" * 50_000, "application/json", 400),
        (b"[]", "application/json", 400),
        (b"null", "application/json", 400),
        (b'{"prompt": "\\ud800"}', "application/json", 400),
        (b'{"prompt": "a", "\\ud800": 1}', "application/json", 400),
        (b'{"prompt": "a", "model": "\\ud800"}', "application/json", 400),
        (b"", "application/json", 400),
        (b'{"prompt": "a"}', "text/plain", 415),
        (b'{"prompt": "a"}', "multipart/form-data; boundary=x", 415),
    ],
)
def test_bodies_that_are_no_requests(server: RunningServer, content: bytes, kind: str, status: int) -> None:
    error = server.client.post("/v1/completions", content=content, headers={"Content-Type": kind})
    assert error.status_code == status, error.text
    assert sorted(error.json()["error"]) == ["code", "message", "param", "type"]


def test_wrong_places_and_methods(server: RunningServer) -> None:
    for path in ("/v1/nothing", "/v1/completions/", "//v1/models"):
        assert server.client.get(path).json()["error"]["code"] == "not_found"
    answer = server.client.get("/v1/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    ("field", "value"),
    [*((name, {"a": 1}) for name in sorted(WITHOUT_MEANING)), ("modalities", ["text"]), ("audio", None)],
)
def test_fields_without_meaning_and_nulls_change_nothing(server: RunningServer, field: str, value: Any) -> None:
    body = {"messages": [MESSAGE], "max_tokens": 3, "temperature": 0}
    plain, more = (
        server.client.post("/v1/chat/completions", json=one).json() for one in (body, {**body, field: value})
    )
    assert plain["choices"] == more["choices"]
