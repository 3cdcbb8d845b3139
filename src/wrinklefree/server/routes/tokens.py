"""POST /tokenize, POST /detokenize, GET /tokenizer_info: what the model reads of a text, and what ids stand for."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter

from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.server.asking import check_model
from wrinklefree.server.errors import ApiError
from wrinklefree.server.prompts import conversation_ids
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.schemas.tokens import (
    DetokenizeReply,
    DetokenizeRequest,
    TokenizeReply,
    TokenizeRequest,
    TokenizerInfo,
)
from wrinklefree.server.state import ServerState
from wrinklefree.server.tools import read_tools


def router(state: ServerState) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.post("/tokenize", response_model=TokenizeReply, response_model_exclude_none=True)
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Give the token ids of a text or a conversation, as they would be computed; none of them is cut off."""
        check_model(state, body, body.model)
        tokenizer = _tokenizer(state)
        given = [name for name in ("prompt", "content", "messages") if getattr(body, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ApiError(400, f"prompt: found {found}, needed is one of prompt, content and messages", param="prompt")
        if body.messages is None:
            for name in ("tools", "add_generation_prompt"):
                if getattr(body, name) is not None:
                    raise ApiError(400, f"{name}: only with messages", param=name)
        tools = None
        if body.messages is not None:
            tools = read_tools(
                state, ChatRequest.model_validate({"messages": body.messages, "tools": body.tools})
            ).rendered
        ids = await asyncio.to_thread(_encode, tokenizer, body, tools)
        names = [tokenizer.token_text(token) for token in ids] if body.return_token_strs else None
        return {"count": len(ids), "max_model_len": state.engine.context, "tokens": ids, "token_strs": names}

    @routes.get("/tokenizer_info", response_model=TokenizerInfo)
    async def tokenizer_info() -> dict[str, Any]:
        """Give the special tokens and the chat template, for clients that render prompts on their side."""
        tokenizer = _tokenizer(state)
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        special = {name: tokenizer.special_tokens.get(name) for name in names}
        template = tokenizer.chat_template
        return {**special, "add_bos_token": tokenizer.adds_bos, "chat_template": template and template.source}

    @routes.post("/detokenize", response_model=DetokenizeReply)
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        """Give the text of token ids; bytes that are no UTF-8 become U+FFFD."""
        check_model(state, body, body.model)
        tokenizer = _tokenizer(state)
        for index, token in enumerate(body.tokens):
            if token >= state.engine.vocab_size:
                last = state.engine.vocab_size - 1
                message = f"tokens: found token {token} at index {index}, allowed are 0 to {last}"
                raise ApiError(400, message, param="tokens")
        return {"prompt": await asyncio.to_thread(tokenizer.decode, body.tokens, False)}

    return routes


def _encode(tokenizer: Tokenizer, body: TokenizeRequest, tools: list[dict[str, Any]] | None) -> list[int]:
    if body.messages is None:
        text = body.prompt if body.prompt is not None else body.content
        assert text is not None
        return tokenizer.encode(text, bos=False if body.add_special_tokens is False else None)
    begin = body.add_generation_prompt is not False
    return conversation_ids(tokenizer, body.messages, tools, begin).tolist()


def _tokenizer(state: ServerState) -> Tokenizer:
    if not state.engine.has_tokenizer:
        raise ApiError(400, "this model has no tokenizer; it takes and gives token ids only")
    return state.engine.tokenizer
