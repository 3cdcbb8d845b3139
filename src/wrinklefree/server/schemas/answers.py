"""What completions answer, as the OpenAPI document shows it; the answers themselves are written without these classes.

tests/server/test_server_document.py holds real answers to them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class _Exact(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorObject(_Exact):
    """What went wrong."""

    message: str
    type: str = Field(description="invalid_request_error, authentication_error, not_found_error, rate_limit_error, ...")
    param: str | None = Field(description="the request's field at fault")
    code: str | None = Field(description="a word for programs")


class ErrorAnswer(_Exact):
    """The body of every answer that is an error, and the last event of a stream that fails."""

    error: ErrorObject


class CachedTokens(_Exact):
    """Of the prompt."""

    cached_tokens: int


class Usage(_Exact):
    """Numbers of tokens; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Figures(_Exact):
    """How an answer was made."""

    mode: str | None = Field(description="how tokens were decided: ar, block or speculative")
    seed: int
    forwards: int = Field(description="passes of the model, the prompt's own not counted")
    tokens_per_forward: float | None
    tokens_per_second: float | None = Field(description="behind the first token")
    time_to_first_token_ms: float | None


class ChoiceFigures(Figures):
    """The same of one of several."""

    index: int


class SeveralFigures(_Exact):
    """Of an answer with several choices."""

    choices: list[ChoiceFigures]


class Pass(_Exact):
    """One pass of the model; positions count from the answer's beginning."""

    rows: tuple[int, int] = Field(description="the first and the last position that were computed")
    decided: list[tuple[int, int, float | None, str]] = Field(description="position, token, confidence, text")
    waiting: list[tuple[int, int, float | None, str]] = Field(description="guesses for open positions")
    ms: float


class ChunkFigures(BaseModel):
    """In a chunk of a watched stream the passes behind it; with the finish reason the fields of `Figures` too."""

    model_config = ConfigDict(strict=True, extra="forbid")
    passes: list[Pass] | None = None
    mode: str | None = None
    seed: int | None = None
    forwards: int | None = None
    tokens_per_forward: float | None = None
    tokens_per_second: float | None = None
    time_to_first_token_ms: float | None = None


class _Head(_Exact):
    id: str
    created: int = Field(description="Unix time")
    model: str
    system_fingerprint: str


FinishReason = Literal["stop", "length", "tool_calls"]


class Alternative(_Exact):
    """A token that was possible."""

    token: str
    logprob: float
    bytes: list[int]


class TokenScore(Alternative):
    """A token of the answer."""

    top_logprobs: list[Alternative]


class ChatScores(_Exact):
    """Log-probabilities of a chat choice: natural logarithms, of the model's unmodified distribution."""

    content: list[TokenScore]
    refusal: None


class CalledFunction(_Exact):
    """A name and JSON."""

    name: str
    arguments: str


class ToolCall(_Exact):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(_Exact):
    """The next message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(_Exact):
    """One of n answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatScores | None
    finish_reason: FinishReason


class ChatAnswer(_Head):
    """A conversation's next message."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage
    wrinklefree: Figures | SeveralFigures


class CalledFunctionPart(_Exact):
    """A piece of a call."""

    name: str | None = None
    arguments: str | None = None


class ToolCallPart(_Exact):
    """A piece of a call; ``index`` says of which."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunctionPart


class Delta(_Exact):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallPart] | None = None


class ChatChunkChoice(_Exact):
    """News of one answer."""

    index: int
    delta: Delta
    logprobs: ChatScores | None = None
    finish_reason: FinishReason | None


class ChatChunk(_Head):
    """An event of a stream; ``usage`` only where it was asked for, with numbers in the last chunk."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    wrinklefree: ChunkFigures | None = None


class TextScoresObject(_Exact):
    """Log-probabilities of a text choice, an entry for each token; the first of an echoed prompt has null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Exact):
    """One of n answers to one of the prompts."""

    index: int
    text: str
    logprobs: TextScoresObject | None
    finish_reason: FinishReason


class TextAnswer(_Head):
    """Texts' continuations."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage
    wrinklefree: Figures | SeveralFigures


class TextChunkChoice(_Exact):
    """News of one answer."""

    index: int
    text: str
    logprobs: TextScoresObject | None
    finish_reason: FinishReason | None


class TextChunk(_Head):
    """An event of a stream; ``usage`` only where it was asked for, with numbers in the last chunk."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None
    wrinklefree: ChunkFigures | None = None
