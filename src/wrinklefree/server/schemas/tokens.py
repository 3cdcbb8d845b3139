"""POST /tokenize, POST /detokenize and GET /tokenizer_info."""

from __future__ import annotations

from pydantic import BaseModel, Field

from wrinklefree.server.schemas.chat import Message
from wrinklefree.server.schemas.fields import Items, RequestBody, TokenId
from wrinklefree.server.schemas.tools import MAX_TOOLS, Tool


class TokenizeRequest(RequestBody):
    """A text or a conversation; exactly one of ``prompt``, ``content`` and ``messages``."""

    model: str | None = Field(None, description="the server's model; absent takes it too")
    prompt: str | None = Field(None, description="a text")
    content: str | None = Field(None, description="another name of prompt")
    messages: Items[Message] | None = Field(None, min_length=1, max_length=4096, description="for the model's template")
    tools: Items[Tool] | None = Field(None, max_length=MAX_TOOLS, description="for the template, with messages")
    add_generation_prompt: bool | None = Field(None, description="with messages: begin the answer; default true")
    add_special_tokens: bool | None = Field(
        None, description="of a text: begin it as the model's configuration says; default true"
    )
    return_token_strs: bool | None = Field(None, description="give each token's entry in the vocabulary too")


class TokenizeReply(BaseModel):
    """The tokens of a text."""

    count: int
    max_model_len: int = Field(description="the model's context")
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(RequestBody):
    """Token ids."""

    model: str | None = Field(None, description="the server's model; absent takes it too")
    tokens: Items[TokenId] = Field(max_length=1 << 20)


class DetokenizeReply(BaseModel):
    """The text of token ids, special tokens included."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What belongs to the model's tokenizer beside its vocabulary; null where it has none."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    add_bos_token: bool = Field(description="whether a text begins with bos_token")
    chat_template: str | None = Field(description="Jinja")
