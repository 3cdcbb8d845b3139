"""openai for Python, in whatever version this environment has: tool calls and objects on a model that has a template
for them. What needs neither is checked in tests/server/test_server_openai_client.py."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field
from served import KEY, Served


class Weather(BaseModel):
    """Say how the sky is."""

    kind: Literal["sun", "rain", "snow"]
    place: str = Field(max_length=6)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0)


ASK = [{"role": "user", "content": "How is the sky?"}]
TOOL = openai.pydantic_function_tool(Weather)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Weather"}}])
def test_a_forced_tool_call_whole_and_streamed(choice: object, client: openai.OpenAI, served: Served) -> None:
    asked = {
        "model": served.model,
        "messages": ASK,
        "tools": [TOOL],
        "tool_choice": choice,
        "max_tokens": 150,
        "seed": 3,
    }
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]
    (call,) = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls" and call.function.name == "Weather" and call.id
    Weather.model_validate_json(call.function.arguments)
    arguments, names = "", []
    for chunk in client.chat.completions.create(**asked, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            names += [delta.function.name] if delta.function.name else []
            arguments += delta.function.arguments or ""
    assert names == ["Weather"] and json.loads(arguments) == json.loads(call.function.arguments)


def test_the_answer_of_a_tool_goes_back_in(client: openai.OpenAI, served: Served) -> None:
    first = client.chat.completions.create(
        model=served.model, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=150
    )
    message = first.choices[0].message
    assert message.tool_calls
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    second = client.chat.completions.create(
        model=served.model, messages=[*ASK, message, told], tools=[TOOL], tool_choice="none", max_tokens=5
    )
    assert second.choices[0].message.tool_calls is None and second.choices[0].message.content


def test_parse_gives_objects_for_formats_and_tools(client: openai.OpenAI, served: Served) -> None:
    parsed = client.chat.completions.parse(model=served.model, messages=ASK, response_format=Weather, max_tokens=150)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    called = client.chat.completions.parse(
        model=served.model, messages=ASK, tools=[TOOL], tool_choice="required", max_tokens=150
    )
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
    with client.chat.completions.stream(
        model=served.model, messages=ASK, response_format=Weather, max_tokens=150
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
