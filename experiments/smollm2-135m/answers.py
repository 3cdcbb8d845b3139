"""Greedy answers to fixed prompts, which were chosen before any model was seen, and all of which are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from wrinklefree.eval.scorer import Scorer, Settings

_ESCAPES = {ord("&"): "&amp;", ord("<"): "&lt;", ord(">"): "&gt;"} | {ord(c): f"&#{ord(c)};" for c in "\\`*_[]|#$~"}
PROMPTS = Path(__file__).with_name("sample_prompts.json")


def prompts() -> list[dict[str, str]]:
    """Return the prompts: kind and text."""
    found: list[dict[str, str]] = json.loads(PROMPTS.read_text(encoding="utf-8"))
    return found


def answers(scorer: Scorer, asked: list[dict[str, str]], max_tokens: int) -> list[dict[str, Any]]:
    """Return for each prompt its kind, text and greedy answer, and whether that was cut at ``max_tokens``."""
    rows = [scorer.encode(scorer.chat([{"role": "user", "content": each["text"]}])) for each in asked]
    written = list(scorer.generate(rows, Settings(max_tokens=max_tokens)))
    # A text that ended by itself has one token, the end, that is not part of it.
    return [
        {**each, "answer": answer, "cut": len(scorer.encode(answer)) >= max_tokens}
        for each, answer in zip(asked, written, strict=True)
    ]


def side_by_side(teacher: list[dict[str, Any]], student: list[dict[str, Any]], names: tuple[str, str]) -> str:
    """Return the answers of two models as a Markdown table below each prompt.

    Raises: ValueError when they answer different prompts.
    """
    if [each["text"] for each in teacher] != [each["text"] for each in student]:
        raise ValueError("the answers are to different prompts")
    parts = []
    for number, (theirs, ours) in enumerate(zip(teacher, student, strict=True), start=1):
        parts.append(f"**{number}. {escaped(theirs['text'])}** ({theirs['kind']})")
        parts.append(f"| {names[0]} | {names[1]} |\n| --- | --- |\n| {_cell(theirs)} | {_cell(ours)} |")
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Return a text whose characters mean nothing in Markdown or HTML."""
    return text.translate(_ESCAPES)


def _cell(answer: dict[str, Any]) -> str:
    lines = answer["answer"].strip().splitlines() or ["(nothing)"]
    shown = [_indented(line) for line in lines]
    return "<br>".join(shown) + (" **[…]**" if answer["cut"] else "")


def _indented(line: str) -> str:
    text = line.lstrip()
    return "&nbsp;" * (len(line) - len(text)) + escaped(text)
