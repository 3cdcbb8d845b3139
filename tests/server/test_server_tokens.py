"""/tokenize and /detokenize against the tokenizer itself, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
from running_server import MODEL, RunningServer

TEXT = "Zwölf Boxkämpfer 🥊 jagen"

HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}]


def post(server: RunningServer, path: str, **body: Any) -> Any:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_text_there_and_back(server: RunningServer) -> None:
    tokenizer = server.engine.tokenizer
    found = post(server, "/tokenize", prompt=TEXT, model=MODEL)
    ids = tokenizer.encode(TEXT)
    assert found == {"count": len(ids), "max_model_len": server.engine.context, "tokens": ids}
    assert post(server, "/tokenize", content=TEXT) == found  # the name of llama-server
    assert post(server, "/detokenize", tokens=ids) == {"prompt": tokenizer.decode(ids, skip_special=False)}
    plain = tokenizer.encode(TEXT, bos=False)
    assert post(server, "/tokenize", prompt=TEXT, add_special_tokens=False)["tokens"] == plain
    assert post(server, "/detokenize", tokens=plain) == {"prompt": TEXT}
    named = post(server, "/tokenize", prompt="né", return_token_strs=True)
    assert named["token_strs"] == [tokenizer.token_text(token) for token in named["tokens"]]
    assert post(server, "/detokenize", tokens=[]) == {"prompt": ""}
    assert post(server, "/tokenize", prompt="x" * 5000)["count"] > server.engine.context  # counted, not cut off


def test_a_conversation_is_what_the_chat_route_computes(server: RunningServer) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    found = post(server, "/tokenize", messages=messages)
    assert found["tokens"] == server.engine.tokenizer.encode_chat(plain)
    asked = post(server, "/v1/chat/completions", messages=messages, max_tokens=1)
    assert asked["usage"]["prompt_tokens"] == found["count"]
    shorter = post(server, "/tokenize", messages=messages, add_generation_prompt=False)["tokens"]
    assert shorter == server.engine.tokenizer.encode_chat(plain, add_generation_prompt=False)
    assert len(shorter) < found["count"]


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/tokenize", {}, 400, "found none of them, needed is one of prompt, content and messages"),
        ("/tokenize", {"prompt": "a", "content": "a"}, 400, "found prompt and content"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, 400, "add_generation_prompt: only with messages"),
        ("/tokenize", {"prompt": "a", "tools": []}, 400, "tools: only with messages"),
        ("/tokenize", {"messages": HELLO, "tools": TOOLS}, 400, "tools: this model's chat template has no tools"),
        ("/tokenize", {"messages": HELLO, "tools": [{}]}, 400, "tools[0]."),
        ("/tokenize", {"prompt": "a", "promt": "b"}, 400, "did you mean 'prompt'"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "found 'other', this server has 'toy'"),
        ("/detokenize", {"tokens": [1, 258]}, 400, "found token 258 at index 1, allowed are 0 to 257"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "this server has 'toy'"),
    ],
)
def test_what_is_refused(server: RunningServer, path: str, body: Any, status: int, says: str) -> None:
    answer = server.client.post(path, json=body)
    assert (answer.status_code, says in answer.json()["error"]["message"]) == (status, True), answer.text


def test_special_tokens_and_template_for_clients_that_render_themselves(server: RunningServer) -> None:
    tokenizer = server.engine.tokenizer
    assert tokenizer.chat_template is not None
    answer = server.client.get("/tokenizer_info")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": None,
            "add_bos_token": tokenizer.adds_bos, "chat_template": tokenizer.chat_template.source,
        },
    )  # fmt: skip
