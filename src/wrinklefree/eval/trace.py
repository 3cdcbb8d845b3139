"""The trace of a generation (`wf generate --trace FILE`), read and checked.

A trace is JSON lines: a header, a line for each pass through the model with the tokens it decided and what it would
have chosen for those still waiting, and a last line when the generation came to its end.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.errors import FormatError, InputError

FORMAT = 1
_MOST_POSITIONS = 1 << 20


@dataclass(frozen=True)
class Mark:
    """A token at a position of the sequence, with the model's confidence in it (0 to 1) where it is known."""

    position: int
    token: int
    confidence: float | None
    text: str


@dataclass(frozen=True)
class Pass:
    """One pass: positions ``first`` to ``last`` were computed; ``waiting`` holds the best token of each still open."""

    number: int
    first: int
    last: int
    decided: tuple[Mark, ...]
    waiting: tuple[Mark, ...]
    milliseconds: float


@dataclass(frozen=True)
class Trace:
    """``prompt``: texts of its tokens, '' where the header gives none. ``block_size`` None: no blocks.

    ``end``: the reason of the last line, None for a generation that was broken off.
    """

    mode: str
    block_size: int | None
    prompt: tuple[str, ...]
    passes: tuple[Pass, ...]
    end: str | None

    @property
    def decided(self) -> int:
        """Return the number of tokens decided in all passes."""
        return sum(len(each.decided) for each in self.passes)


def read_trace(path: str | Path) -> Trace:
    """Return the trace in a file.

    Raises: InputError when there is no such file or it holds no pass; FormatError naming the line that is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; wf generate --trace FILE writes one")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}; it is no trace") from error
    # Not splitlines(): JSON may hold other line separators inside its strings.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise FormatError(f"{path}: the file is empty; a trace begins with its header")
    objects = [_Line(f"{path}, line {number}", line) for number, line in lines]
    header, rest = objects[0], objects[1:]
    if header.raw.get("format") != FORMAT:
        found = header.raw.get("format")
        raise FormatError(f"{header.place}: format is {found!r}; this release reads traces of format {FORMAT}")
    end = rest.pop().string("end") if rest and "end" in rest[-1].raw else None
    passes = tuple(line.one_pass() for line in rest)
    if not passes:
        raise InputError(f"{path}: the trace holds no pass; there is nothing to show")
    prompt = header.texts()
    _check_positions(objects[1:], passes, len(prompt))
    block_size = header.integer("block_size", 1) if header.raw.get("block_size") is not None else None
    return Trace(header.string("mode"), block_size, prompt, passes, end)


class _Line:
    """One line: its place for messages and its checked fields."""

    def __init__(self, place: str, text: str) -> None:
        self.place = place
        try:
            self.raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{place}: cannot be read as JSON ({error})") from error
        if not isinstance(self.raw, dict):
            raise FormatError(f"{place}: found {type(self.raw).__name__}, an object is needed")

    def wrong(self, name: str, needed: str) -> FormatError:
        return FormatError(f"{self.place}: {name} is {self.raw.get(name)!r:.80}; needed is {needed}")

    def string(self, name: str) -> str:
        value = self.raw.get(name)
        if not isinstance(value, str):
            raise self.wrong(name, "a text")
        return value

    def integer(self, name: str, least: int) -> int:
        value = self.raw.get(name)
        if not _is_integer(value) or not least <= value <= _MOST_POSITIONS:
            raise self.wrong(name, f"a whole number from {least}")
        return int(value)

    def texts(self) -> tuple[str, ...]:
        """Return the texts of the prompt's tokens."""
        ids = self.raw.get("prompt")
        if not isinstance(ids, list) or len(ids) > _MOST_POSITIONS or not all(map(_is_integer, ids)):
            raise self.wrong("prompt", "a list of token ids")
        texts = self.raw.get("texts", [""] * len(ids))
        if not isinstance(texts, list) or len(texts) != len(ids) or not all(isinstance(t, str) for t in texts):
            raise self.wrong("texts", f"the texts of the prompt's {len(ids)} tokens")
        return tuple(texts)

    def one_pass(self) -> Pass:
        rows = self.raw.get("rows")
        if (
            not isinstance(rows, list)
            or len(rows) != 2
            or not all(map(_is_integer, rows))
            or not 0 <= rows[0] <= rows[1]
        ):
            raise self.wrong("rows", "two positions, [first, last]")
        milliseconds = self.raw.get("ms")
        if not _is_number(milliseconds) or milliseconds < 0:
            raise self.wrong("ms", "a number of milliseconds")
        return Pass(
            self.integer("pass", 0), rows[0], rows[1], self.marks("decided"), self.marks("waiting"), float(milliseconds)
        )

    def marks(self, name: str) -> tuple[Mark, ...]:
        raw = self.raw.get(name)
        if not isinstance(raw, list):
            raise self.wrong(name, "a list of [position, token, confidence, text]")
        return tuple(self._mark(name, each) for each in raw)

    def _mark(self, name: str, raw: Any) -> Mark:
        if isinstance(raw, list) and len(raw) == 4:
            position, token, confidence, text = raw
            fits = _is_integer(position) and 0 <= position < _MOST_POSITIONS and _is_integer(token)
            sure = confidence is None or (_is_number(confidence) and -1e-3 <= confidence <= 1.001)
            if fits and sure and isinstance(text, str):
                # A softmax in float32 may end a rounding error outside 0 to 1.
                within = None if confidence is None else min(max(float(confidence), 0.0), 1.0)
                return Mark(position, token, within, text)
        raise FormatError(
            f"{self.place}: {name} holds {raw!r:.80}; needed are [position, token, confidence from 0 to 1, text]"
        )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_positions(lines: list[_Line], passes: tuple[Pass, ...], prompt: int) -> None:
    """Every token is decided once, behind the prompt."""
    seen: set[int] = set()
    for line, each in zip(lines, passes, strict=False):
        for mark in each.decided:
            if mark.position < prompt:
                raise FormatError(
                    f"{line.place}: position {mark.position} is decided, but the prompt reaches to {prompt - 1}"
                )
            if mark.position in seen:
                raise FormatError(f"{line.place}: position {mark.position} is decided a second time")
            seen.add(mark.position)
