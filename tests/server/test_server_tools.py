"""Tools: forced calls keep to their schemas, calls are found however the text is cut, and what cannot be is said."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running_server import RunningServer, chat_toy
from sse_reading import chunks

from wrinklefree.engine import Engine
from wrinklefree.server.answers import Choice
from wrinklefree.server.grammar import Grammars, GrammarState, Rule
from wrinklefree.server.routes.chat import ChatReply
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.tool_calls import CallReader, arguments_as_objects, message_of
from wrinklefree.server.tools import _call_rule

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]
TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call them as <tool_call>{"name": .., "arguments": ..}</tool_call>.<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }} {{ call.function.arguments.city }}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"City": {"enum": ["Berlin", "Lima"]}},
        },
    },
}
LONG = {"type": "function", "function": {"name": "f", "parameters": {"patternProperties": {"a{3000}": {}}}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "the time"}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = chat_toy(tmp_path_factory.mktemp("tools") / "toy", max_position_embeddings=1024)
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture(scope="module")
def tooled(model: Path) -> Iterator[RunningServer]:
    with RunningServer(model, context=1024) as running:
        yield running


def ask(server: RunningServer, **body: Any) -> Any:
    return server.client.post(CHAT, json={"messages": HELLO, "max_tokens": 300, "seed": 1, **body})


def check(call: dict[str, Any]) -> None:
    arguments = json.loads(call["function"]["arguments"])
    assert call["type"] == "function" and call["id"].startswith("call_")
    if call["function"]["name"] == "clock":
        assert arguments == {}
    else:
        assert call["function"]["name"] == "weather" and arguments["city"] in ("Berlin", "Lima")
        assert 1 <= arguments["days"] <= 9


def test_a_named_function_is_called_once(tooled: RunningServer) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = ask(tooled, tools=[CLOCK, WEATHER], tool_choice=choice, n=2, temperature=2.0).json()
    for one in answer["choices"]:
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        (call,) = one["message"]["tool_calls"]
        check(call)
        assert call["function"]["name"] == "weather"
    ids = [one["message"]["tool_calls"][0]["id"] for one in answer["choices"]]
    assert len(set(ids)) == 2 and answer["wrinklefree"]["choices"][0]["mode"] == "ar"


def test_required_calls_whole_and_streamed(tooled: RunningServer) -> None:
    body = {"tools": [CLOCK, WEATHER], "tool_choice": "required", "temperature": 1.5, "max_tokens": 900}
    whole = ask(tooled, **body).json()["choices"][0]
    calls = whole["message"]["tool_calls"]
    assert calls and whole["finish_reason"] in ("tool_calls", "length")
    found: list[dict[str, Any]] = []
    given = chunks(tooled.client, CHAT, {"messages": HELLO, "seed": 1, **body})
    for delta in (one["choices"][0]["delta"] for one in given):
        assert not delta.get("content")
        for part in delta.get("tool_calls", []):
            if part["index"] == len(found):
                found.append(part)
            else:
                found[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    assert [one["function"] for one in found] == [one["function"] for one in calls]
    for call in found[:-1]:
        check(call)
    assert given[-1]["choices"][0]["finish_reason"] == whole["finish_reason"]
    (only,) = ask(tooled, **{**body, "parallel_tool_calls": False}).json()["choices"][0]["message"]["tool_calls"]
    check(only)


def test_the_template_sees_tools_and_former_calls(tooled: RunningServer) -> None:
    history = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Lima"}'}}]},
        {"role": "tool", "tool_call_id": "a", "content": "rain"},
    ]  # fmt: skip
    tokenizer = tooled.engine.tokenizer
    former = [dict(history[0]), {**history[1], "content": "", "tool_calls": [
        {"function": {"name": "weather", "arguments": {"city": "Lima"}}}]}, history[2]]  # fmt: skip
    wanted = len(tokenizer.encode_chat(former, tools=[CLOCK]))
    answer = ask(tooled, messages=history, tools=[CLOCK], max_tokens=3).json()
    assert answer["usage"]["prompt_tokens"] == wanted
    counted = tooled.client.post("/tokenize", json={"messages": history, "tools": [CLOCK]}).json()
    assert counted["count"] == wanted
    # none: the model does not hear of them
    answer = ask(tooled, messages=history, tools=[CLOCK], tool_choice="none", max_tokens=3).json()
    assert answer["usage"]["prompt_tokens"] == len(tokenizer.encode_chat(former)) < wanted


def test_free_text_beside_tools_is_as_it_was(tooled: RunningServer) -> None:
    body = {"tools": [WEATHER], "max_tokens": 40, "logprobs": True}
    whole = ask(tooled, **body).json()["choices"][0]
    assert "tool_calls" not in whole["message"] and whole["message"]["content"]
    given = chunks(tooled.client, CHAT, {"messages": HELLO, "seed": 1, **body})
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in given) == whole["message"]["content"]
    scores = [entry for one in given for entry in (one["choices"][0].get("logprobs") or {}).get("content", [])]
    assert scores == whole["logprobs"]["content"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tool_choice": "required"}, "tool_choice", "no tools to choose from"),
        ({"tools": [CLOCK, CLOCK]}, "tools", "two functions of the same name"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "response_format.schema", "beside tools"),
        ({"tools": [CLOCK], "tool_choice": "required", "mode": "block"}, "mode", "tools needs mode ar or auto"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}],
          "tool_choice": "required"}, "tools.0.function.parameters", "needed is object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}],
          "tool_choice": "required"}, "tools", "Unimplemented keys"),
        ({"tools": [LONG, {"type": "function", "function": {**LONG["function"], "name": "g"}}],
          "tool_choice": "required"}, "tools", "found 6000"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked(tooled: RunningServer, body: dict[str, Any], param: str, message: str) -> None:
    answer = ask(tooled, **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
    assert message in error["message"]


def test_a_template_without_tools(server: RunningServer) -> None:
    for body, param in (({"tools": [CLOCK]}, "tools"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages")):
        answer = ask(server, **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
        assert "this model's chat template has no tools" in answer.json()["error"]["message"]
    assert ask(server, tools=[CLOCK], tool_choice="none", max_tokens=2).status_code == 200


CALL = '<tool_call>\n{"name": "clock", "arguments": {"a": "}\\"</tool_call>", "b": [1, {}]}}\n</tool_call>'
ARGUMENTS = '{"a": "}\\"</tool_call>", "b": [1, {}]}'
TEXTS: dict[str, tuple[str, str, list[str]]] = {
    "text": (" a < b <tool> ", " a < b <tool> ", []),
    "nothing": ("", "", []),
    "a call": (CALL, "", [ARGUMENTS]),
    "text and calls": (f"Let me see.\n{CALL}\n{CALL} ", "Let me see.", [ARGUMENTS, ARGUMENTS]),
    "text behind": (f"{CALL}\n done", "done", [ARGUMENTS]),
    "another order": ('<tool_call>{"arguments": {"x": 1}, "name": "clock"}</tool_call>', "", ['{"x": 1}']),
    "no such function": ('<tool_call>{"name": "no", "arguments": {}}</tool_call>',) * 2 + ([],),
    "no object": ("<tool_call>[1, {]</tool_call>!",) * 2 + ([],),
    "no arguments": ('<tool_call>{"name": "clock"}</tool_call>',) * 2 + ([],),
    "cut in the tag": ("so <tool_ca", "so <tool_ca", []),
    "cut in the name": ('so <tool_call>{"name": "clo', 'so <tool_call>{"name": "clo', []),
    "cut in the arguments": ('<tool_call>{"name": "clock", "arguments": {"a": "x', "", ['{"a": "x']),
    "a key too many": ('<tool_call>{"name": "clock", "arguments": {}, "more": 1}</tool_call>', "", ["{}"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
@given(cuts=st.lists(st.integers(0, 200), max_size=30))
@settings(max_examples=25, deadline=None)
def test_calls_are_found_however_the_text_is_cut(name: str, cuts: list[int]) -> None:
    text, content, arguments = TEXTS[name]
    reader = CallReader(frozenset({"clock"}))
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    deltas = [reader.push(text[a:b]) for a, b in itertools.pairwise(edges)] + [reader.finish()]
    said = "".join(delta.get("content", "") for delta in deltas)
    given = ["" for _ in arguments]
    for part in (part for delta in deltas for part in delta.get("tool_calls", [])):
        given[part["index"]] += part["function"]["arguments"]
    assert (said, given) == (content, arguments)
    message = message_of(reader)
    assert message["content"] == (content or None if arguments else content)
    assert [call["function"]["arguments"] for call in message.get("tool_calls", [])] == arguments


@given(
    st.lists(
        st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "clock", "arguments": ', "{", "}", '"', " ", "x"]),
        max_size=30,
    )
)
@settings(max_examples=150, deadline=None)
def test_text_does_not_depend_on_the_pieces(pieces: list[str]) -> None:
    one, whole = CallReader(frozenset({"clock"})), CallReader(frozenset({"clock"}))
    for piece in pieces:
        one.push(piece)
    one.finish()
    whole.push("".join(pieces))
    whole.finish()
    assert one.content == whole.content
    assert [call.arguments for call in one.calls] == [call.arguments for call in whole.calls]


def test_arguments_of_former_calls() -> None:
    calls: list[Any] = [
        {"function": {"name": "f", "arguments": '{"a": 1}'}},
        {"function": {"arguments": "no"}},
        {"function": "x"},
        {},
    ]
    assert arguments_as_objects(calls) == [{"function": {"name": "f", "arguments": {"a": 1}}}, *calls[1:]]


def follows(state: GrammarState, tokens: list[int]) -> bool:
    for token in tokens:
        if not np.unpackbits(state.mask().view(np.uint8), bitorder="little")[token]:
            return False
        state.accept(token)
    return True


STRICT = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("text", "parallel", "fine"),
    [
        ("just < text", True, True),
        ('Hm.<tool_call>\n{"name": "weather", "arguments": {"city": "Lima", "days": 3}}\n</tool_call>', True, True),
        ('<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"', True, False),
        ('<tool_call>\n{"name": "hammer"', True, False),
        ('<tool_call>\n{"name": "clock", "arguments": {"any": 1}}\n</tool_call>\n<tool_call>\n{"name": "w', True, True),
        ('<tool_call>\n{"name": "clock", "arguments": {"any": 1}}\n</tool_call>\n', False, False),
    ],
)
def test_strict_functions_in_free_text(model: Path, text: str, parallel: bool, fine: bool) -> None:
    engine = Engine.load(model, threads=1, context=64)
    body = ChatRequest.model_validate({"messages": HELLO, "tools": [STRICT, CLOCK], "parallel_tool_calls": parallel})
    rule = _call_rule(body.tools or [], body)
    assert isinstance(rule, Rule)
    (state,) = Grammars(engine)._compile(rule, 1)
    assert follows(state, engine.tokenizer.encode(text)) is fine


def test_calls_that_a_model_made_by_itself(tooled: RunningServer) -> None:
    text = f"Let me see. {CALL}"
    body = ChatRequest.model_validate({"messages": HELLO, "tools": [CLOCK]})
    for size in (1, 7, 500):
        choice = Choice(0, cast(Any, None), 0.0)
        reply = ChatReply(tooled.app.state.server, body, [choice], frozenset({"clock"}))
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        written = []
        for number, piece in enumerate(pieces, 1):
            choice.finish_reason = "stop" if number == len(pieces) else None
            written.append(reply.piece(choice, piece, ()))
        deltas = [json.loads("{" + one + "}")["delta"] for one in written if one]
        assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
        parts = [part for delta in deltas for part in delta.get("tool_calls", [])]
        assert parts[0]["function"]["name"] == "clock" and {part["index"] for part in parts} == {0}
        assert "".join(part["function"]["arguments"] for part in parts) == ARGUMENTS
        assert choice.finish_reason == "tool_calls"
    choice = Choice(0, cast(Any, None), 0.0, pieces=[text], finish_reason="stop")
    whole = ChatReply(tooled.app.state.server, body, [choice], frozenset({"clock"})).choice(choice)
    assert whole["message"]["content"] == "Let me see." and whole["finish_reason"] == "tool_calls"
    assert whole["message"]["tool_calls"][0]["function"] == {"name": "clock", "arguments": ARGUMENTS}
