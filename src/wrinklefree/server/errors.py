"""What goes wrong over HTTP, as OpenAI's clients know it: a status and ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

import logging
import re
from typing import Any

from wrinklefree.errors import FormatError, InputError

_FIELD = re.compile(r"([a-z_]+)[:\s]")  # messages begin with the field's name


class ApiError(Exception):
    """An answer that is an error.

    ``kind`` is OpenAI's ``type``: invalid_request_error, authentication_error, not_found_error, rate_limit_error,
    server_error. ``param``: the request's field at fault. ``code``: a word for programs. ``retry_after``: seconds for
    the header of that name.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        message = _encodable(message)
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = None if param is None else _encodable(param)
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Return the JSON object of the answer (and of the event that ends a stream that has begun)."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def from_input_error(error: InputError) -> ApiError:
    """Return what a client is told of its mistake; a damaged file of the model is the server's."""
    if isinstance(error, FormatError):
        logging.getLogger("wrinklefree.server").error("a file of the model is damaged: %s", error)
        return ApiError(500, "the server's model is damaged; its log says where", "server_error", code="model_damaged")
    found = _FIELD.match(str(error))
    return ApiError(400, str(error), param=found.group(1) if found else None, code="invalid_value")


def internal() -> ApiError:
    """Return the error of our own mistakes."""
    return ApiError(500, "the server failed at this request; its log says why", "server_error", code="internal_error")


def _encodable(text: str) -> str:
    """Halves of surrogate pairs, which JSON can name, have no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def overloaded(waiting: int, retry_after: int) -> ApiError:
    """Return the refusal of a full queue."""
    message = f"the server is busy: {waiting} requests are waiting, no more are taken; try again in {retry_after} s"
    return ApiError(429, message, "rate_limit_error", code="queue_full", retry_after=retry_after)


def draining() -> ApiError:
    """Return the refusal of a server that is stopping."""
    return ApiError(503, "the server is stopping; try another one", "server_error", code="stopping", retry_after=5)


def timed_out(seconds: float) -> ApiError:
    """Return the end of an answer that took too long."""
    message = f"the answer was not finished within {seconds:g} s, the server's limit; ask for fewer tokens"
    return ApiError(504, message, "server_error", code="request_timeout")


def waited_too_long(seconds: float, retry_after: int) -> ApiError:
    """Return the refusal of a request that got no slot in time."""
    message = f"the server is busy: no slot was free within {seconds:g} s; try again in {retry_after} s"
    return ApiError(429, message, "rate_limit_error", code="queue_timeout", retry_after=retry_after)


def not_read(seconds: float) -> ApiError:
    """Return the end of an answer that its client does not read."""
    return ApiError(408, f"what was computed was not read for {seconds:g} s", code="slow_reader")


def failed(reason: str | None = None) -> ApiError:
    """Return the end of an answer that the server could not compute; ``reason`` is for the client's eyes."""
    message = "the server failed to compute the answer" + (f": {reason}" if reason else "; its log says why")
    return ApiError(500, message, "server_error", code="internal_error")
