"""Passes of the model as a watched stream shows them; the same meaning as in `engine.trace`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wrinklefree.engine.decoding import Decided, Turn
from wrinklefree.server.state import ServerState


def passes(
    state: ServerState, prompt_tokens: int, seen: Sequence[tuple[Turn, tuple[Decided, ...]]]
) -> list[dict[str, Any]]:
    """Return JSON values of passes; positions count from the answer's beginning, those of the prompt are negative."""

    def mark(one: Decided) -> list[Any]:
        confidence = one.confidence
        if confidence is None and one.logprob is not None:  # of answers whose request asked for logprobs
            confidence = math.exp(one.logprob)
        confidence = None if confidence is None else round(confidence, 6)
        text = state.engine.tokenizer.decode([one.token], skip_special=False) if state.engine.has_tokenizer else ""
        return [one.position - prompt_tokens, one.token, confidence, text]

    return [
        {
            "rows": [turn.first - prompt_tokens, turn.last - prompt_tokens],
            "decided": [mark(one) for one in turn.decided],
            "waiting": [mark(one) for one in waiting],
            "ms": round(turn.seconds * 1000, 3),
        }
        for turn, waiting in seen
    ]
