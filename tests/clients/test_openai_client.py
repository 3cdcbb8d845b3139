"""openai for Python, in whatever version this environment has: tool calls and objects on a model that has a template
for them. What needs neither is checked in tests/server/test_server_openai_client.py."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from served import KEY, Served


class Weather(BaseModel, extra="forbid"):
    """Say how the sky is."""

    kind: Literal["sun", "rain", "snow"]
    place: str = Field(max_length=6)


@pytest.fixture
def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0)


ASK = [{"role": "user", "content": "How is the sky?"}]
TOOL = openai.pydantic_function_tool(Weather)
ENOUGH: dict[str, Any] = {"max_tokens": 400, "seed": 1}
FORCED = ENOUGH | {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Weather"}}])
def test_forced_calls_whole_and_streamed(choice: object, several: bool, client: openai.OpenAI, served: Served) -> None:
    asked: dict[str, Any] = {
        "model": served.model, "messages": ASK, "tools": [TOOL], "tool_choice": choice, "max_tokens": 1400, "seed": 3,
        "parallel_tool_calls": several,
    }  # fmt: skip
    whole = client.chat.completions.create(**asked).choices[0]
    assert whole.finish_reason == "tool_calls"
    calls = whole.message.tool_calls or []
    assert len(calls) == 1 or (several and choice == "required" and calls)
    for call in calls:
        assert call.function.name == "Weather" and Weather.model_validate_json(call.function.arguments)
    streamed: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**asked, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            found = streamed.setdefault(delta.index, [delta.function.name, ""])
            found[1] += delta.function.arguments or ""
    assert list(streamed.values()) == [[call.function.name, call.function.arguments] for call in calls]


def test_the_answer_of_a_tool_goes_back_in(client: openai.OpenAI, served: Served) -> None:
    first = client.chat.completions.create(model=served.model, messages=ASK, **FORCED)
    message = first.choices[0].message
    assert message.tool_calls
    told = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    second = client.chat.completions.create(
        model=served.model, messages=[*ASK, message, told], tools=[TOOL], tool_choice="none", max_tokens=5
    )
    assert second.choices[0].message.tool_calls is None and second.choices[0].message.content


def test_parse_gives_objects_for_formats_and_tools(client: openai.OpenAI, served: Served) -> None:
    parsed = client.chat.completions.parse(model=served.model, messages=ASK, response_format=Weather, **ENOUGH)
    assert isinstance(parsed.choices[0].message.parsed, Weather)
    called = client.chat.completions.parse(model=served.model, messages=ASK, **FORCED)
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)
    with client.chat.completions.stream(model=served.model, messages=ASK, response_format=Weather, **ENOUGH) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Weather)
