"""litellm as a library, the way its proxy calls OpenAI-compatible servers: completion, stream, text, errors."""

from __future__ import annotations

from typing import Any

import pytest
from served import KEY, Served

litellm = pytest.importorskip("litellm", reason="not checked: litellm against the server")
ASK = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def options(served: Served) -> dict[str, Any]:
    return {"model": f"openai/{served.model}", "api_base": served.url, "api_key": KEY, "max_retries": 0}


def test_completion_and_stream_say_the_same(options: dict[str, Any]) -> None:
    whole = litellm.completion(**options, messages=ASK, max_tokens=20, temperature=0, seed=1)
    assert whole.usage.completion_tokens == 20 and whole.choices[0].finish_reason == "length"
    stream = litellm.completion(**options, messages=ASK, max_tokens=20, temperature=0, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_a_forced_tool_is_called(options: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}
    tool = {"type": "function", "function": {"name": "look", "parameters": {**schema, "additionalProperties": False}}}
    answer = litellm.completion(**options, messages=ASK, tools=[tool], tool_choice="required", max_tokens=1400, seed=1)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls[0].function.name == "look"


def test_text_and_vectors(options: dict[str, Any], served: Served) -> None:
    text_options = {**options, "model": f"text-completion-openai/{served.model}"}
    answer = litellm.text_completion(**text_options, prompt="Once upon", max_tokens=6, temperature=0)
    assert answer.choices[0].text
    vectors = litellm.embedding(**options, input=["a", "bb"])
    assert [entry["index"] for entry in vectors.data] == [0, 1]


def test_errors_are_its_own_exceptions(options: dict[str, Any]) -> None:
    with pytest.raises(litellm.NotFoundError, match="nothing"):
        litellm.completion(**{**options, "model": "openai/nothing"}, messages=ASK)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**options, messages=[{"role": "user", "content": "x" * 9000}])
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**options, "api_key": "wrong"}, messages=ASK)
