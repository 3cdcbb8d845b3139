"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from wrinklefree.engine.sampling import MAX_LOGPROBS
from wrinklefree.server.schemas.fields import Generating, Items
from wrinklefree.server.schemas.structured import Structured
from wrinklefree.server.schemas.tools import WithTools


class TextPart(BaseModel):
    """A part of a message; other kinds than text are not understood."""

    model_config = ConfigDict(strict=True, extra="forbid")
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of the conversation. ``developer`` is given to the model's template as ``system``."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[TextPart] | None = None
    name: str | None = None
    tool_calls: Items[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class ChatRequest(Generating, Structured, WithTools):
    """A conversation to continue."""

    example: ClassVar[dict[str, Any] | None] = {
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": 32,
        "stream": False,
    }

    messages: Items[Message] = Field(min_length=1, max_length=4096)
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 24)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    @property
    def top_scores(self) -> int | None:
        """How many of the most likely tokens to list; None for no log-probabilities."""
        return (self.top_logprobs or 0) if self.logprobs else None
