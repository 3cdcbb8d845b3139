"""Calls of functions in the text of an answer, found while it comes in pieces."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

BEGIN, END = "<tool_call>", "</tool_call>"
# As far as the arguments; whoever writes them in another order is understood when the call is complete.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_LONGEST_HEAD = 1024


@dataclass(slots=True)
class Call:
    """A call, as far as it has come. ``arguments``: JSON text as the model wrote it."""

    name: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    arguments: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object of a whole answer."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallReader:
    """Takes the calls of known functions out of one answer's text; everything else stays text.

    `push` and `finish` return the fields of OpenAI's delta. ``calls`` and ``content`` are what came so far. White space
    around calls is dropped.
    """

    def __init__(self, names: frozenset[str]) -> None:
        """``names``: the functions that there are."""
        self.calls: list[Call] = []
        self.content = ""
        self._names = names
        self._left = ""  # read, and not understood yet
        self._gap = ""  # white space before the call being read
        self._state = self._text
        self._delta: dict[str, Any] = {}
        self._depth = 0  # of objects and lists in the arguments
        self._string = self._escaped = False

    def push(self, text: str) -> dict[str, Any]:
        """Return what is certain with a further piece of text, {} for nothing."""
        self._left += text
        while self._left and self._state():
            pass
        delta, self._delta = self._delta, {}
        return delta

    def finish(self) -> dict[str, Any]:
        """Return what was held back at the end of the answer."""
        if self._state == self._head:
            self._say(self._gap + BEGIN + self._left)  # no call after all
        elif self._state == self._text and (self._left.strip() or not self.calls):
            self._say(self._left)
        self._left = ""
        delta, self._delta = self._delta, {}
        return delta

    def _text(self) -> bool:
        """Pass text on up to a call; hold back what may be the beginning of one, and white space before it."""
        before, found, behind = self._left.partition(BEGIN)
        if found:
            said = before.rstrip()
            self._gap = before[len(said) :]
            self._say(said)
            self._left, self._state = behind, self._head
            return True
        held = max((n for n in range(1, len(BEGIN)) if before.endswith(BEGIN[:n])), default=0)
        certain = before[: len(before) - held].rstrip()
        self._say(certain)
        self._left = before[len(certain) :]
        return False

    def _head(self) -> bool:
        """Wait for the name of a known function, or for the end."""
        head = _HEAD.match(self._left[:_LONGEST_HEAD])
        name = _loaded(head[1]) if head else None
        if head is not None and name in self._names:
            self._begin(str(name))
            self._left, self._state = self._left[head.end() :], self._arguments
            return True
        body, found, behind = self._left.partition(END)
        if not found:
            return False
        whole = _loaded(body)
        if isinstance(whole, dict) and whole.get("name") in self._names and isinstance(whole.get("arguments"), dict):
            self._begin(whole["name"])
            self._give(json.dumps(whole["arguments"], ensure_ascii=False))
        else:
            self._say(self._gap + BEGIN + body + END)
        self._left, self._state = behind, self._text
        return True

    def _arguments(self) -> bool:
        """Pass JSON text on until its object is closed."""
        for place, sign in enumerate(self._left):
            if self._escaped:
                self._escaped = False
            elif self._string:
                self._escaped, self._string = sign == "\\", sign != '"'
            elif sign == '"':
                self._string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._give(self._left[: place + 1])
                    self._left, self._state = self._left[place + 1 :], self._tail
                    return True
        self._give(self._left)
        self._left = ""
        return False

    def _tail(self) -> bool:
        """Skip what closes a call."""
        _, found, behind = self._left.partition(END)
        if found:
            self._left, self._state = behind, self._text
        return bool(found)

    def _say(self, text: str) -> None:
        if not self.content and self.calls:
            text = text.lstrip()
        if text:
            self.content += text
            self._delta["content"] = self._delta.get("content", "") + text

    def _begin(self, name: str) -> None:
        self.calls.append(Call(name))
        entry = {"index": len(self.calls) - 1, **self.calls[-1].to_json()}
        self._delta.setdefault("tool_calls", []).append(entry)

    def _give(self, arguments: str) -> None:
        index = len(self.calls) - 1
        self.calls[-1].arguments += arguments
        entries: list[dict[str, Any]] = self._delta.setdefault("tool_calls", [])
        if not entries or entries[-1]["index"] != index:
            entries.append({"index": index, "function": {"arguments": ""}})
        entries[-1]["function"]["arguments"] += arguments


def message_of(reader: CallReader) -> dict[str, Any]:
    """Return the message of a whole answer, which was pushed and finished."""
    calls: Sequence[Call] = reader.calls
    message: dict[str, Any] = {"role": "assistant", "content": reader.content or None if calls else reader.content}
    message["refusal"] = None
    return {**message, "tool_calls": [call.to_json() for call in calls]} if calls else message


def arguments_as_objects(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the calls of a former message with arguments as an object, as templates expect them."""
    found = []
    for call in calls:
        function = call.get("function")
        written = function.get("arguments") if isinstance(function, dict) else None
        parsed = _loaded(written) if isinstance(written, str) else None
        if isinstance(function, dict) and isinstance(parsed, dict):
            call = {**call, "function": {**function, "arguments": parsed}}
        found.append(dict(call))  # what is no object stays as it is; the template may show it
    return found


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
