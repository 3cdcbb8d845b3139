"""The prompts, always the same: beginnings of held-out documentation, questions in the chat template, small tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.questions import QUESTIONS

from wrinklefree.data.python_docs import HELD_OUT_TOPICS, topics
from wrinklefree.eval.exact_tasks import ExactTask

DOCS_TOKENS = 48


@dataclass(frozen=True)
class Prompt:
    """``tokens``: ids. ``kind``: docs, chat or task."""

    kind: str
    tokens: tuple[int, ...]


def prompts(tokenizer: Any, of_each: int) -> list[Prompt]:
    """Return ``of_each`` (at most 10) prompts of documentation and of chat, in turn."""
    documents = [document.text for document in topics() if document.id in HELD_OUT_TOPICS]
    docs = [Prompt("docs", tuple(tokenizer.encode(text)[:DOCS_TOKENS])) for text in documents[:of_each]]
    chat = [
        Prompt("chat", tuple(tokenizer.encode_chat([{"role": "user", "content": text}])))
        for text in QUESTIONS[:of_each]
    ]
    return [prompt for pair in zip(docs, chat, strict=True) for prompt in pair]


def of_tasks(tokenizer: Any, tasks: Sequence[ExactTask]) -> list[Prompt]:
    """Return the prompts of tasks."""
    return [Prompt("task", tuple(tokenizer.encode(task.prompt))) for task in tasks]
