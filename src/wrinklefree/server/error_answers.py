"""Whatever goes wrong in a route becomes OpenAI's error object; no path, no stack trace leaves the server."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from wrinklefree.errors import InputError
from wrinklefree.server.errors import ApiError, from_input_error, internal

_LOG = logging.getLogger("wrinklefree.server")
# How pydantic names the members of a union in the place of an error; a field's name looks like none of them.
_MEMBER = re.compile(r"(str|int|float|bool|none|dict|list|tuple|constrained|function|tagged|nullable)\b.*[\[\]-].*|"
                     r"str|int|float|bool|constrained-\w+|[A-Z]\w*")  # fmt: skip
_STATUS_WORDS = {
    404: ("not_found_error", "not_found", "there is nothing at {path}"),
    405: ("invalid_request_error", "method_not_allowed", "{method} is not allowed for {path}"),
    400: ("invalid_request_error", "invalid_body", "the body cannot be read as JSON"),
    413: ("invalid_request_error", "request_too_large", "the request is too large"),
}


def install(app: FastAPI) -> None:
    """Let an application answer every failure with an error object."""
    for kind, answer in (
        (ApiError, _api_error),
        (InputError, _input_error),
        (RequestValidationError, _validation_error),
        (HTTPException, _http_error),
        (Exception, _unexpected),
    ):
        app.add_exception_handler(kind, answer)


def answer_with(error: ApiError) -> JSONResponse:
    """Return the response of an error."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    return JSONResponse(error.body(), error.status, headers)


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return answer_with(error)


async def _input_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, InputError)
    return answer_with(from_input_error(error))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):  # the framework reads JSON only where the header says that it is
        found = request.headers.get("content-type", "nothing")
        message = f"Content-Type: found {found!r:.100}, needed is application/json"
        return answer_with(ApiError(415, message, code="unsupported_media_type"))
    message, param = describe(error.errors())
    return answer_with(ApiError(400, message, param=param, code="invalid_value"))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind, code, text = _STATUS_WORDS.get(error.status_code, ("invalid_request_error", None, str(error.detail)))
    if error.status_code >= 500:
        kind = "server_error"
    words = text.format(path=request.url.path[:200], method=request.method) if code else text
    return JSONResponse(ApiError(error.status_code, words, kind, code=code).body(), error.status_code, error.headers)


async def _unexpected(_: Request, error: Exception) -> JSONResponse:
    _LOG.error("a request failed", exc_info=error)
    return answer_with(internal())


def describe(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """Return one line on the first field that is wrong (of a union what each member wants), and the field's name."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}", None
    place = _place(first)
    if not place:
        return str(first["msg"]) if first["type"] == "no_text" else "the body: a JSON object is needed", None
    same = [one for one in errors if _place(one)[:1] == place[:1]]
    deepest = max(same, key=lambda one: len(_place(one)))
    if len(_place(deepest)) > len(place):
        same = [one for one in same if _place(one) == _place(deepest)]
        place = _place(deepest)
    wanted = " or ".join(dict.fromkeys(str(one["msg"]).replace("Input should be ", "") for one in same[:8]))
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if same[0]["type"] == "missing":
        return f"{name}: it is missing; give it", str(place[0])
    if same[0]["type"] == "extra_forbidden":
        return f"{name}: nobody knows this field; leave it out", str(place[0])
    return f"{name}: found {same[0]['input']!r:.80}, needed: {wanted}", str(place[0])


def _place(error: Mapping[str, Any]) -> list[str | int]:
    """The path to the value in the body, without the names of a union's members."""
    return [part for part in error["loc"][1:] if isinstance(part, int) or not _MEMBER.fullmatch(part)]
