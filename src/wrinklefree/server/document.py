"""The OpenAPI document: what the framework knows of the routes, and what it cannot know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from wrinklefree.server.guard import PUBLIC
from wrinklefree.server.schemas.answers import ChatChunk, ErrorAnswer, TextChunk
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.schemas.completions import CompletionRequest
from wrinklefree.server.schemas.fields import REQUEST
from wrinklefree.server.settings import ServerSettings

_REFERENCE = "#/components/schemas/"
# Status and when. Those of a body only where there is one, of an answer that is computed only there.
_ERRORS = {
    "401": "no key, or a wrong one",
    "403": "a page of another origin, or another name of the host",
    "431": "too many or too long headers",
    "500": "the server failed; its log says why",
    "503": "the model is loading, or the server is stopping",
}
_BODY_ERRORS = {
    "400": "a field is wrong, unknown or not possible with this model; param names it",
    "404": "there is no such model",
    "408": "the body, or the reading of the answer, took too long",
    "413": "the body is larger than the server takes",
    "415": "the body is not application/json",
}
_BUSY_ERRORS = {
    "429": "too many answers are waiting; Retry-After says when to come again",
    "504": "the answer took longer than the server allows",
}
_RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def install(app: FastAPI, settings: ServerSettings) -> None:
    """Let an application give its document; routes must have been added."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, settings)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def events(chunk: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return for a route's ``responses`` that it can answer with a stream of ``chunk``.

    Source: OpenAPI 3.2, "Sequential Media Types": ``itemSchema`` describes an event, whose ``data`` is a string.
    """
    names = (chunk.__name__, ErrorAnswer.__name__)
    content = {"anyOf": [{"$ref": _REFERENCE + name} for name in names]}
    chunk_text = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    data = {"anyOf": [{"const": "[DONE]"}, chunk_text]}
    item = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    description = "the answer; with stream true as server-sent events, each with a chunk, the last is [DONE]"
    return {200: {"description": description, "content": {"text/event-stream": {"itemSchema": item}}}}


def _document(app: FastAPI, settings: ServerSettings) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        routes=app.routes,
        summary="An OpenAI-compatible server of one model.",
        description="Fields beside OpenAI's, and what is not honoured: docs/serving.md.",
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    more = models_json_schema([(one, "serialization") for one in (ErrorAnswer, ChatChunk, TextChunk)],
                              ref_template=_REFERENCE + "{model}")[1]  # fmt: skip
    for name, schema in more["$defs"].items():
        schemas.setdefault(name, schema)
    for schema in schemas.values():
        if schema.pop(REQUEST, False) and settings.ignore_unknown:
            schema["additionalProperties"] = True
        _correct(schema)
    for name in (ChatRequest.__name__, CompletionRequest.__name__):
        schemas[name]["properties"]["n"]["anyOf"][0]["maximum"] = settings.max_choices
    if settings.api_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operation in _operations(document):
        _complete(path, operation, settings)
    return document


def _correct(schema: Any) -> None:
    """Make bounds of integers integers again: the framework reads them as floats, 2**64 - 1 as 2**64."""
    if isinstance(schema, list):
        for one in schema:
            _correct(one)
    if not isinstance(schema, dict):
        return
    for bound in ("minimum", "maximum"):
        if schema.get("type") == "integer" and isinstance(schema.get(bound), float):
            found = int(schema[bound])
            schema[bound] = found - 1 if bound == "maximum" and found >= 1 << 53 else found
    for one in schema.values():
        _correct(one)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _complete(path: str, operation: dict[str, Any], settings: ServerSettings) -> None:
    """Add the errors and the key to one operation."""
    answers = operation["responses"]
    answers.pop("422", None)
    errors = dict(_ERRORS)
    if "requestBody" in operation:
        errors |= _BODY_ERRORS
    elif "{" in path:
        errors |= {"400": "the path is wrong", "404": _BODY_ERRORS["404"]}
    if path.startswith("/v1/") and "requestBody" in operation:
        errors |= _BUSY_ERRORS
    public = path in PUBLIC
    if public or not settings.api_keys:
        del errors["401"]
    else:
        operation["security"] = [{"key": []}]
    content = {"application/json": {"schema": {"$ref": _REFERENCE + ErrorAnswer.__name__}}}
    for status, description in sorted(errors.items()):
        own = answers.setdefault(status, {"description": description, "content": content})
        if status in ("429", "503"):
            own.setdefault("headers", _RETRY)
