"""POST /v1/completions."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from wrinklefree.engine.sampling import MAX_LOGPROBS
from wrinklefree.server.schemas.fields import Generating, Items, TokenId
from wrinklefree.server.schemas.structured import Structured


class CompletionRequest(Generating, Structured):
    """Texts to continue, given as text or as token ids."""

    example: ClassVar[dict[str, Any] | None] = {"prompt": "Once upon a time", "max_tokens": 32, "temperature": 0.7}

    prompt: str | Items[str] | Items[TokenId] | Items[Items[TokenId]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    best_of: int | None = Field(None, ge=1, le=128, description="only the value of n")

    @property
    def top_scores(self) -> int | None:
        """How many of the most likely tokens to list; None for no log-probabilities."""
        return self.logprobs
