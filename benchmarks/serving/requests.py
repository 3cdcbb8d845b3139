"""The requests: each is a function of its number, so that any answer can be asked for again, alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.questions import QUESTIONS

# Long enough that computing it again for each request would show.
INSTRUCTIONS = (
    "You answer the questions of visitors to a small public library. Be brief, friendly and exact. When you are not "
    "sure, say so, and name a shelf where the visitor may find more. The library has three floors. On the ground floor "
    "are newspapers, travel guides, cookery, gardening and the children's corner. On the first floor are history, "
    "biographies, languages, law and the natural sciences. On the second floor are novels, poems, plays, music and the "
    "reading room, where nobody may talk. Books may be kept for four weeks and films for one; both may be renewed once "
    "unless somebody waits for them. Opening hours are from nine to six, on Thursdays from nine to nine, and never on "
    "Sundays. Do not answer questions about other visitors, and do not promise that a book is there. "
)


@dataclass(frozen=True)
class Workload:
    """Requests of one kind. ``fields``: of every request, such as a mode.

    distinct: every prompt begins differently, so no prefix cache can help. shared: ``different`` questions behind the
    same instructions, asked again and again, so one can.
    """

    name: str
    max_tokens: int
    different: int = 16
    fields: dict[str, Any] = field(default_factory=dict)
    temperature: float = 0.0

    def body(self, number: int) -> dict[str, Any]:
        """Return the fields of request ``number``: with a seed, streamed, of exactly ``max_tokens`` tokens."""
        if self.name == "shared":
            number %= self.different
            messages = [{"role": "system", "content": INSTRUCTIONS * 2}]
        else:
            messages = [{"role": "system", "content": f"Visitor {number * 7919 % 1_000_003} asks."}]
        messages.append({"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]} (question {number})"})
        # Drawn from the whole distribution: what a server does without being told differs.
        drawn = {"top_p": 1.0, "top_k": 0, "min_p": 0.0} if self.temperature else {}
        return {
            "messages": messages, "max_tokens": self.max_tokens, "temperature": self.temperature, "seed": number,
            "stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True, **drawn, **self.fields,
        }  # fmt: skip

    def same(self, number: int) -> int:
        """Return the smallest number of an equal request."""
        return number % self.different if self.name == "shared" else number
