"""Where the tokens of a trace stand in a picture, and when they show: what the SVG and the GIF have in common.

Positions flow like text, each a cell as wide as its token, in a monospaced font; a token with a line break ends its
line. Frame 0 is the prompt, frame n what is known after pass n.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from wrinklefree.errors import InputError
from wrinklefree.eval.trace import Mark, Trace

COLUMNS = 108  # characters of a line
PROMPT_TOKENS = 120  # shown at most, the last ones
_LONGEST = 24  # characters of a cell
_MOST_CELLS = 8192
_LOW, _MIDDLE, _HIGH = (241, 163, 64), (247, 247, 247), (103, 169, 207)  # told apart with any colour vision


@dataclass(frozen=True)
class Cell:
    """A position: ``line``, ``column`` and ``width`` in characters; ``label`` is its token's text, fit to be shown.

    ``opened``, ``decided``, ``finished``: the frame from which it is known to be computed, holds its token, and belongs
    to a block of which nothing is open any more; all 0 for the prompt. ``guesses``: (from, until, label) of frames.
    """

    position: int
    line: int
    column: int
    width: int
    label: str
    confidence: float | None
    opened: int
    decided: int
    finished: int
    guesses: tuple[tuple[int, int, str], ...] = ()
    tip: str = ""

    @property
    def is_prompt(self) -> bool:
        return self.decided == 0


@dataclass(frozen=True)
class Layout:
    """Cells in reading order, number of lines and frames, and the caption of each frame."""

    cells: tuple[Cell, ...]
    lines: int
    frames: int
    captions: tuple[str, ...]
    title: str
    blocks: bool


def lay_out(trace: Trace) -> Layout:
    """Return the layout of a trace. Raises: InputError for one too long for a picture."""
    if trace.decided > _MOST_CELLS:
        raise InputError(f"trace: {trace.decided} tokens are more than the {_MOST_CELLS} that a picture can show")
    decided = {mark.position: (number, mark) for number, each in enumerate(trace.passes, 1) for mark in each.decided}
    opened = _opened(trace, decided)
    finished = _finished(trace, decided)
    guesses = _guesses(trace, decided)
    cells: list[Cell] = []
    line = column = 0
    hidden = max(0, len(trace.prompt) - PROMPT_TOKENS)
    marks = [Mark(hidden - 1, -1, None, "…")] if hidden else []
    marks += [Mark(hidden + i, -1, None, text) for i, text in enumerate(trace.prompt[hidden:])]
    marks += [decided[position][1] for position in sorted(decided)]
    for mark in marks:
        label = shown(mark)
        width = columns(label)
        if column and column + width + 1 > COLUMNS:
            line, column = line + 1, 0
        at = mark.position if mark.position in decided else -1
        number = decided[at][0] if at >= 0 else 0
        cells.append(
            Cell(
                mark.position, line, column, width, label, mark.confidence, opened.get(at, 0), number,
                finished.get(at, 0), tuple((a, b, cut(text, width)) for a, b, text in guesses.get(at, ())),
                _tip(mark, number),
            )
        )  # fmt: skip
        column += width + 1
        if "\n" in mark.text:
            line, column = line + 1, 0
    return Layout(
        tuple(cells), line + 1, len(trace.passes) + 1, _captions(trace), _title(trace), trace.block_size is not None
    )


def shown(mark: Mark) -> str:
    """Return what stands for a token: its text on one line, without characters that cannot be drawn, never empty."""
    blank = mark.text != "" and not mark.text.strip(" ")
    text = "␣" * len(mark.text) if blank else "".join(_character(c) for c in mark.text)
    if not text:
        text = f"#{mark.token}" if mark.token >= 0 else "·"
    return cut(text, _LONGEST)


def _character(c: str) -> str:
    if c in "\n\t\r ":
        return {"\n": "⏎", "\t": "→", "\r": "␍"}.get(c, c)
    if ord(c) < 32:
        return chr(0x2400 + ord(c))
    # Controls, lone surrogates, private and unassigned code points and invisible marks: none may reach an XML file.
    return "�" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c


def columns(text: str) -> int:
    """Return how many columns a text takes in a monospaced font, at least 1."""
    wide = sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
    return max(1, wide)


def cut(text: str, width: int) -> str:
    """Return a text of at most ``width`` columns, with … where something is left out."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 1:
        text = text[:-1]
    return text + "…"


def colour(confidence: float | None) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255): orange for no confidence, blue for certainty; half is almost white."""
    if confidence is None:
        return _MIDDLE
    low, high, share = (_LOW, _MIDDLE, 2 * confidence) if confidence < 0.5 else (_MIDDLE, _HIGH, 2 * confidence - 1)
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return red, green, blue


def _opened(trace: Trace, decided: dict[int, tuple[int, Mark]]) -> dict[int, int]:
    """Return of each decided position the frame before the first pass that computed it or said something about it."""
    found = {position: number for position, (number, _) in decided.items()}
    for number, each in enumerate(trace.passes, 1):
        for position in (*range(each.first, each.last + 1), *(mark.position for mark in each.waiting)):
            if position in found:
                found[position] = min(found[position], number)
    return {position: number - 1 for position, number in found.items()}


def _finished(trace: Trace, decided: dict[int, tuple[int, Mark]]) -> dict[int, int]:
    """Return of each decided position the frame in which the last of its block was decided."""
    size = trace.block_size or 1
    last: dict[int, int] = {}
    for position, (number, _) in decided.items():
        last[position // size] = max(last.get(position // size, 0), number)
    return {position: last[position // size] for position in decided}


def _guesses(trace: Trace, decided: dict[int, tuple[int, Mark]]) -> dict[int, list[tuple[int, int, str]]]:
    """Return of each position the best tokens before it was decided, equal ones in a row as one."""
    found: dict[int, list[tuple[int, int, str]]] = {}
    for number, each in enumerate(trace.passes, 1):
        for mark in each.waiting:
            if mark.position not in decided or decided[mark.position][0] <= number:
                continue
            spans, until = found.setdefault(mark.position, []), decided[mark.position][0]
            label = shown(mark)
            if spans and spans[-1][2] == label:
                continue
            if spans:
                spans[-1] = (spans[-1][0], number, spans[-1][2])
            spans.append((number, until, label))
    return found


def _tip(mark: Mark, number: int) -> str:
    if number == 0:
        return f"position {mark.position}, prompt"
    sure = "" if mark.confidence is None else f", confidence {mark.confidence:.3f}"
    return f"position {mark.position}, token {mark.token}{sure}, decided in pass {number}"


def _captions(trace: Trace) -> tuple[str, ...]:
    tokens, milliseconds, found = 0, 0.0, ["prompt"]
    for number, each in enumerate(trace.passes, 1):
        tokens += len(each.decided)
        milliseconds += each.milliseconds
        found.append(f"pass {number}  ·  {tokens} tokens  ·  {milliseconds:,.0f} ms")
    return tuple(found)


def _title(trace: Trace) -> str:
    passes = len(trace.passes)
    blocks = f", blocks of {trace.block_size}" if trace.block_size else ""
    end = "" if trace.end is not None else ", broken off"
    mode = cut("".join(_character(c) for c in trace.mode), _LONGEST)
    return f"{mode}{blocks}: {trace.decided} tokens in {passes} passes, {trace.decided / passes:.2f} a pass{end}"
