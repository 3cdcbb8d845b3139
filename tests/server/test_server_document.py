"""The OpenAPI document tells the truth: real answers, chunks and errors are what its schemas allow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from running_server import RunningServer, chat_toy
from sse_reading import chunks
from test_server_tools import TEMPLATE, WEATHER

from wrinklefree.server.schemas.answers import ChatAnswer, ChatChunk, ErrorAnswer, TextAnswer, TextChunk
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.schemas.completions import CompletionRequest
from wrinklefree.server.schemas.fields import REFUSED, REQUEST, WITHOUT_MEANING

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
ROUTES: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "/v1/chat/completions": (CHAT, ChatAnswer, ChatChunk),
    "/v1/completions": ({"prompt": ["a", "b"], "max_tokens": 4}, TextAnswer, TextChunk),
}
CASES = [(path, more) for path in ROUTES for more in ({}, {"n": 2, "temperature": 0})] + [
    ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 2}),
    ("/v1/completions", {"logprobs": 2}),
]


@pytest.mark.parametrize(("path", "more"), CASES, ids=str)
def test_answers_have_the_form_of_the_document(server: RunningServer, path: str, more: dict[str, Any]) -> None:
    body, whole, chunk = ROUTES[path]
    answer = server.client.post(path, json={**body, **more})
    assert answer.status_code == 200, answer.text
    TypeAdapter(whole).validate_json(answer.content)
    watched = {**body, **more, "watch": True, "stream_options": {"include_usage": True}}
    for one in chunks(server.client, path, watched):
        TypeAdapter(chunk).validate_json(json.dumps(one))


def test_calls_of_functions_have_the_form_of_the_document(tmp_path: Path) -> None:
    toy = chat_toy(tmp_path / "toy", template=TEMPLATE)
    body = {**CHAT, "max_tokens": 200, "seed": 1, "tools": [WEATHER], "tool_choice": "required"}
    with RunningServer(toy, slots=1) as server:
        answer = server.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        ChatAnswer.model_validate_json(answer.content)
        found = chunks(server.client, "/v1/chat/completions", body)
        assert any("tool_calls" in chunk["choices"][0]["delta"] for chunk in found)
        for chunk in found:
            ChatChunk.model_validate_json(json.dumps(chunk))


def test_the_document_names_every_operation_and_its_errors(server: RunningServer) -> None:
    document = server.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert REQUEST not in json.dumps(document)
    assert "HTTPValidationError" not in json.dumps(document)
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path
            assert {"403", "500", "503"} <= set(operation["responses"]), path
            if "requestBody" in operation:
                assert {"400", "404", "413", "415"} <= set(operation["responses"]), path
                name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
                assert schemas[name]["additionalProperties"] is False
    for name in (ErrorAnswer, ChatAnswer, ChatChunk, TextAnswer, TextChunk):
        assert name.__name__ in schemas
    assert schemas["ChatRequest"]["properties"]["n"]["anyOf"][0]["maximum"] == server.settings.max_choices
    seed = schemas["ChatRequest"]["properties"]["seed"]["anyOf"][0]
    assert (seed["minimum"], seed["maximum"]) == (-(1 << 63), (1 << 64) - 1)


@pytest.mark.parametrize("path", ROUTES)
def test_examples_of_the_document_work(server: RunningServer, path: str) -> None:
    schemas = server.client.get("/openapi.json").json()["components"]["schemas"]
    name = "ChatRequest" if "chat" in path else "CompletionRequest"
    assert server.client.post(path, json=schemas[name]["examples"][0]).status_code == 200


def test_errors_have_the_form_of_the_document(server: RunningServer) -> None:
    for answer in (
        server.client.post("/v1/completions", json={}),
        server.client.post("/v1/completions", json={"prompt": "a", "model": "x"}),
        server.client.post("/v1/completions", content=b"x"),
        server.client.get("/nothing"),
        server.client.put("/v1/completions"),
    ):
        assert answer.status_code >= 400
        ErrorAnswer.model_validate_json(answer.content)


def test_unknown_fields_where_the_server_ignores_them(toy: Any) -> None:
    with RunningServer(toy, slots=1, ignore_unknown=True) as server:
        assert server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "x": 1}).status_code == 200
        document = server.client.get("/openapi.json").json()
        assert document["components"]["schemas"]["CompletionRequest"]["additionalProperties"] is True
        refused = server.client.post("/v1/completions", json={"prompt": "a", "suffix": "x"})
        assert refused.status_code == 400, "what is known and cannot be done is refused all the same"


def test_the_manual_names_every_field() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
    fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields, *WITHOUT_MEANING, *REFUSED}
    assert [name for name in sorted(fields) if f"`{name}`" not in manual] == []
