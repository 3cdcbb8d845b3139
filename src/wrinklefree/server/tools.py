"""Functions that a model may call: what its template is given, what its answer must keep to.

A call is written as ``<tool_call>`` around a JSON object with name and arguments, the form of Hermes, Qwen and SmolLM3.
A template that does not know tools, or another form, is refused: the model would not see them, or not be understood.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from wrinklefree.artifact.tokenizer import Tokenizer
from wrinklefree.errors import InputError
from wrinklefree.server.errors import ApiError
from wrinklefree.server.grammar import JSON_OPTIONS, Rule
from wrinklefree.server.schemas.chat import ChatRequest
from wrinklefree.server.schemas.tools import Tool, ToolName
from wrinklefree.server.state import ServerState
from wrinklefree.server.structured import check_schema, read_rule
from wrinklefree.server.tool_calls import BEGIN, END

MAX_CALLS = 16  # in a forced answer
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolUse:
    """What a request's tools come to.

    ``rendered``: for the template. ``rule``: what answers keep to, also where no tool is involved. ``names``: functions
    whose calls are taken out of the text; none: the text is left as it is.
    """

    rendered: list[dict[str, Any]] | None
    rule: Rule | None
    names: frozenset[str]


def read_tools(state: ServerState, body: ChatRequest) -> ToolUse:
    """Return how a request uses tools. Raises: ApiError where the model or this server cannot do what it asks."""
    rule, tools, choice = read_rule(body), body.tools or [], body.tool_choice
    spoken = any(message.tool_calls or message.role == "tool" for message in body.messages)
    offered = bool(tools) and choice != "none"
    if (spoken or offered) and not _writes_calls(state):
        field = "tools" if offered else "messages"
        message = (
            f"{field}: this model's chat template has no tools, or in a form that is not known here; leave them out"
        )
        raise ApiError(400, message, param=field, code="unsupported_parameter")
    if not tools and choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice: found no tools to choose from", param="tool_choice")
    if not offered:
        return ToolUse(None, rule, frozenset())
    if rule is not None:
        message = f"{rule.field}: cannot be kept to beside tools; set tool_choice none, or leave one of them out"
        raise ApiError(400, message, param=rule.field)
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: found two functions of the same name", param="tools")
    rendered = [tool.model_dump(exclude_none=True) for tool in tools]
    return ToolUse(rendered, _call_rule(tools, body), frozenset(names))


def _call_rule(tools: Sequence[Tool], body: ChatRequest) -> Rule | None:
    """Return the grammar of forced calls, or of free text with calls of strict functions; None where all is free."""
    choice = body.tool_choice
    if isinstance(choice, ToolName):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            message = f"tool_choice: found the function {choice.function.name!r}, which is not among the tools"
            raise ApiError(400, message, param="tool_choice")
    forced = choice == "required" or isinstance(choice, ToolName)
    single = isinstance(choice, ToolName) or body.parallel_tool_calls is False
    if not forced and not single and not any(tool.function.strict for tool in tools):
        return None
    most = 1 if single else MAX_CALLS
    return Rule("tools", "lark", _grammar(tools, forced, most))


def _grammar(tools: Sequence[Tool], forced: bool, most: int) -> str:
    rules, schemas = [], []
    for number, tool in enumerate(tools):
        function = tool.function
        schema = function.parameters or _NO_PARAMETERS if forced or function.strict else {"type": "object"}
        field = f"tools.{number}.function.parameters"
        check_schema(field, schema)
        if schema.setdefault("type", "object") != "object":
            raise ApiError(400, f"{field}: found type {schema['type']!r:.40}, needed is object", param=field)
        written = json.dumps({**schema, "x-guidance": JSON_OPTIONS})
        schemas.append(schema)
        head = json.dumps(f'\n{{"name": "{function.name}", "arguments": ')
        rules += [f"call_{number}: {head} args_{number} {json.dumps('}' + chr(10) + END)}"]
        rules += [f"args_{number}: %json {written}"]
    check_schema("tools", {"allOf": schemas})  # the limits are for all of them together
    calls = " | ".join(f"call_{number}" for number in range(len(tools)))
    if forced:
        more = f' ("\\n" one){{0,{most - 1}}}' if most > 1 else ""
        start = [f"start: one{more}", f'one: "{BEGIN}" ({calls})']
    else:
        start = ["start: one | TEXT" if most == 1 else "start: one* TEXT", f"one: begin ({calls})"]
        start += [f'begin[lazy]: TEXT "{BEGIN}"', r"TEXT: /(.|\n)*/"]
    return "\n".join(["%llguidance {}", *start, *rules])


def _writes_calls(state: ServerState) -> bool:
    return state.engine.has_tokenizer and _knows_form(state.engine.tokenizer)


@lru_cache(maxsize=4)
def _knows_form(tokenizer: Tokenizer) -> bool:
    """Whether the template shows tools to the model and tells it of the form of calls that is read here."""
    function = {"name": "find_weather", "description": "", "parameters": _NO_PARAMETERS}
    messages = [{"role": "user", "content": "?"}]
    try:
        text = tokenizer.apply_chat(messages, tools=[{"type": "function", "function": function}])
    except InputError:
        return False
    # a tag that is a special token would be missing from the answer's text
    seen = tokenizer.decode(tokenizer.encode(BEGIN, bos=False))
    return "find_weather" in text and BEGIN in text and seen.strip() == BEGIN
