"""GET /v1/models."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class ModelFacts(BaseModel):
    """What is ours to say about a model."""

    context: int = Field(description="tokens of a prompt and its answer together")
    vocabulary: int
    modes: list[str] = Field(description="what a request may name as mode, beside auto")
    block_size: int | None = Field(description="positions that are denoised together; null: no block diffusion")


class ModelEntry(BaseModel):
    """A model."""

    id: str
    object: Literal["model"]
    created: int = Field(description="Unix time of the server's start")
    owned_by: str
    max_model_len: int = Field(description="the context, where clients of other servers look for it")
    wrinklefree: ModelFacts


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"]
    data: list[ModelEntry]
