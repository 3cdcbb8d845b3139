"""Prompts as token ids: conversations through the model's template, texts, and ids as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import FormatError
from wrinklefree.server.errors import ApiError
from wrinklefree.server.schemas.chat import Message
from wrinklefree.server.state import ServerState
from wrinklefree.server.tool_calls import arguments_as_objects

_T = TypeVar("_T")
_LONG_CHARACTERS = 2048  # about half a millisecond, for which the loop can wait


def for_template(message: Message) -> dict[str, Any]:
    """Return a message as templates know it: one text, no empty fields, no role ``developer``."""
    given = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        given["content"] = "\n".join(part.text for part in message.content)
    elif message.content is None:
        given["content"] = ""
    if message.tool_calls:
        given["tool_calls"] = arguments_as_objects(message.tool_calls)
    if message.role == "developer":
        given["role"] = "system"
    return given


async def conversation(
    state: ServerState, messages: Sequence[Message], tools: Sequence[dict[str, Any]] | None = None
) -> NDArray[np.int32]:
    """Return the ids int32 [T] of a conversation, BOS once. Raises: ApiError, InputError."""
    tokenizer = _tokenizer(state, "messages")
    size = sum(64 + _characters(message) for message in messages)
    return fitting(state, await _in_time(lambda: conversation_ids(tokenizer, messages, tools), size), "messages")


def conversation_ids(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None = None,
    begin_answer: bool = True,
) -> NDArray[np.int32]:
    """Return the ids int32 [T] of a conversation of any length. Raises: ApiError, InputError."""
    if tokenizer.chat_template is None:
        raise ApiError(400, "messages: this model has no chat template; use /v1/completions", param="messages")
    try:
        text = tokenizer.apply_chat([for_template(message) for message in messages], begin_answer, tools)
    except FormatError as error:  # names no path, as it does for damaged files
        raise ApiError(400, f"messages: {error}", param="messages") from error
    return np.array(tokenizer.encode(text), np.int32)


def fitting(state: ServerState, ids: NDArray[np.int32], field: str) -> NDArray[np.int32]:
    """Return the ids [T] of a prompt that the context has room for; others with the code and words clients look for.

    Raises: ApiError.
    """
    most = state.engine.context
    if not len(ids):
        raise ApiError(400, f"{field}: found no token, at least one is needed", param=field, code="invalid_value")
    if len(ids) > most:
        message = f"{field}: this model's maximum context length is {most} tokens, found {len(ids)}; shorten it"
        raise ApiError(400, message, param=field, code="context_length_exceeded")
    return ids


async def texts(
    state: ServerState, prompt: str | list[str] | list[int] | list[list[int]], field: str = "prompt"
) -> list[NDArray[np.int32]]:
    """Return the ids int32 [T] of each of several texts, those of a field of the request. Raises: ApiError."""
    many: list[Any] = prompt if isinstance(prompt, list) and not _is_ids(prompt) else [prompt]
    if not many:
        raise ApiError(400, f"{field}: found an empty list, at least one {field} is needed", param=field)
    if len(many) > state.settings.max_prompts:
        limit = state.settings.max_prompts
        raise ApiError(400, f"{field}: found {len(many)} {field}s, at most {limit} are allowed", param=field)
    size = sum(len(one) for one in many if isinstance(one, str))
    found = await _in_time(lambda: [_ids(state, one, field) for one in many], size)
    return [fitting(state, ids, field) for ids in found]


def _characters(message: Message) -> int:
    content = message.content or ""
    return len(content) if isinstance(content, str) else sum(len(part.text) for part in content)


def _ids(state: ServerState, prompt: str | list[int], field: str) -> NDArray[np.int32]:
    return np.array(prompt if isinstance(prompt, list) else _tokenizer(state, field).encode(prompt), np.int32)


def _tokenizer(state: ServerState, field: str) -> Tokenizer:
    if not state.engine.has_tokenizer:
        raise ApiError(400, f"{field}: this model has no tokenizer; give token ids to /v1/completions", param=field)
    return state.engine.tokenizer


async def _in_time(encode: Callable[[], _T], characters: int) -> _T:
    """Do what takes long beside the event loop."""
    return await asyncio.to_thread(encode) if characters > _LONG_CHARACTERS else encode()


def _is_ids(prompt: list[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)
