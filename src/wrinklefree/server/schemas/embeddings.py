"""POST /v1/embeddings."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from wrinklefree.server.schemas.fields import Items, RequestBody, TokenId


class EmbeddingRequest(RequestBody):
    """Texts, as text or as token ids."""

    model: str | None = Field(None, description="the server's model; absent takes it too")
    input: str | Items[str] | Items[TokenId] | Items[Items[TokenId]]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="numbers, or their float32 bytes (little endian) in base64; default float"
    )
    dimensions: int | None = Field(None, description="only the model's own number")
    normalize: bool | None = Field(None, description="give vectors of length 1; default true")


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingReply(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
