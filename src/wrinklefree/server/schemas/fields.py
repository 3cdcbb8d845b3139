"""Request fields that chat and text completions share, and the rule for fields that nobody knows."""

from __future__ import annotations

import difflib
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from wrinklefree.engine.decoding_settings import MAX_WINDOW
from wrinklefree.engine.sampling import MAX_BIASED_TOKENS, MAX_STOP_CHARACTERS, MAX_STOP_STRINGS
from wrinklefree.server.errors import ApiError

_T = TypeVar("_T")
# A list from a request. Only its first wrong item is told: two megabytes of wrong ones would make a million errors, a
# minute of work and gigabytes of memory.
Items = Annotated[list[_T], Field(fail_fast=True)]

# What OpenAI's clients send and what has no meaning for one local model: taken, whatever it says, and not used.
WITHOUT_MEANING = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "prompt_cache_options", "prediction",
    }
)  # fmt: skip
# Fields of OpenAI whose meaning cannot be kept: null is as if absent, anything else is refused with this reason.
REFUSED = {
    "audio": "this server gives text only",
    "modalities": "this server gives text only",
    "suffix": "this server cannot fill text in before a suffix",
    "functions": "it is replaced by tools",
    "function_call": "it is replaced by tool_choice",
    "web_search_options": "this server does not search the web",
    "reasoning_effort": "this server has no setting for it",
    "verbosity": "this server has no setting for it",
    "moderation": "this server does not moderate",
}


REQUEST = "x-request"  # marks schemas in a document under way: their fields are all that is allowed


def _describe(schema: dict[str, Any], kind: type[RequestBody]) -> None:
    schema |= {"additionalProperties": False, REQUEST: True}
    if kind.example is not None:
        schema["examples"] = [kind.example]


class RequestBody(BaseModel):
    """A request: values have exactly the type that is named, null is as if absent."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, json_schema_extra=_describe)
    example: ClassVar[dict[str, Any] | None] = None
    harmless: ClassVar[dict[str, tuple[Any, ...]]] = {"modalities": (["text"],)}

    @model_validator(mode="before")
    @classmethod
    def _check_texts(cls, body: Any) -> Any:
        if not _is_text(body):
            raise PydanticCustomError("no_text", "the body has half of a surrogate pair, which is no character")
        return body

    def check_unknown(self, ignore: bool) -> None:
        """Refuse fields that are not declared, unless ``ignore`` or they are known to have no meaning here.

        Raises: ApiError.
        """
        for name, found in (self.model_extra or {}).items():
            if found is None or name in WITHOUT_MEANING or found in self.harmless.get(name, ()):
                continue
            if name in REFUSED:
                raise ApiError(400, f"{name}: {REFUSED[name]}; leave it out", param=name, code="unsupported_parameter")
            if not ignore:
                raise ApiError(400, self._unknown(name), param=name[:80], code="unknown_parameter")

    def _unknown(self, name: str) -> str:
        known = [*type(self).model_fields, *WITHOUT_MEANING]
        near = difflib.get_close_matches(name[:80], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; leave it out, or start the server with --ignore-unknown"
        return f"unknown parameter {name[:80]!r}{hint}"


def _is_text(value: Any) -> bool:
    """Whether all texts within a JSON value can be written as UTF-8."""
    if isinstance(value, str):
        try:
            return value.isascii() or bool(value.encode())
        except UnicodeEncodeError:
            return False
    if isinstance(value, dict):
        return all(_is_text(name) and _is_text(found) for name, found in value.items())
    if isinstance(value, list) and not (value and isinstance(value[0], int)):  # ids may be many
        return all(map(_is_text, value))
    return True


class StreamOptions(BaseModel):
    """How a stream is sent."""

    model_config = ConfigDict(strict=True, extra="forbid")
    include_usage: bool | None = Field(None, description="a last chunk with the numbers of tokens")
    include_obfuscation: bool | None = Field(None, description="accepted without meaning")


StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
IdText = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]


class Generating(RequestBody):
    """What both kinds of completion can be told."""

    model: str | None = Field(None, description="the server's model; absent takes it too")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=128, description="answers to each prompt, at most the server's limit")
    max_tokens: int | None = Field(None, ge=0, le=1 << 24)
    temperature: float | None = Field(None, ge=0, le=100, description="0 takes the most likely token; default 1")
    top_p: float | None = Field(None, gt=0, le=1, description="default 1")
    seed: int | None = Field(None, ge=-(1 << 63), le=(1 << 64) - 1, description="choice i has seed + i")
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = Field(
        None, description="texts that end the answer, and are not part of it"
    )
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[IdText, Bias], Field(max_length=MAX_BIASED_TOKENS)] | None = Field(
        None, description="token id to what is added to its logit"
    )
    mode: Literal["auto", "ar", "block", "speculative"] | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    tokens_per_forward: int | None = Field(None, ge=1, le=1 << 20)
    entropy_bound: float | None = Field(None, ge=0)
    sub_block: int | None = Field(None, ge=1, le=1 << 20)
    window: int | None = Field(None, ge=1, le=MAX_WINDOW)
    top_k: int | None = Field(None, ge=0, le=(1 << 31) - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    ignore_eos: bool | None = None
    stop_token_ids: Items[TokenId] | None = Field(None, max_length=64)
    watch: bool | None = Field(None, description="stream every pass of the model, with its guesses")
    return_tokens_as_token_ids: bool | None = Field(None, description="logprobs name tokens token_id:5")

    @property
    @abstractmethod
    def top_scores(self) -> int | None:
        """How many of the most likely tokens to list at each place; None for no log-probabilities."""
