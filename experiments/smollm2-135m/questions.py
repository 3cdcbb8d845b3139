"""What a user would say, as the teacher imagines it: the chat template up to the user's turn is all it is given.

Source: the idea of Magpie (arXiv 2406.08464). Here it is asked of a base of chats in which user turns were learnt, or
were not; either way only turns that end and are of some length are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LEAST, MOST = 3, 60  # tokens, the end token among them
_MARK = "WHAT-THE-USER-SAYS"
_FIRST = re.compile(r"^<\|[^|>]*\|>")
_LEFTOVER = re.compile(r"<\|[^|>]*\|>|\ufffd")


def prefix(tokenizer: Any) -> str:
    """Return what the chat template of a Hugging Face tokenizer puts before the user's words."""
    shown = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
    return str(shown).split(_MARK)[0]


def kept(entries: Iterable[Mapping[str, Any]], before: str, length: int) -> list[str]:
    """Return the questions among sampled texts, each once and on one line.

    ``entries``: text and tokens (of what was sampled, with its end token). ``before``: what every text begins with;
    its special token may be missing, because `wf corpus` leaves out what a tokenizer puts there again. ``length``:
    most tokens that were sampled; a question of so many was cut.
    """
    found: dict[str, str] = {}
    for entry in entries:
        said = entry["text"].removeprefix(before).removeprefix(_FIRST.sub("", before))
        said = " ".join(said.split())
        if LEAST <= entry["tokens"] <= min(MOST, length - 1) and said and not _LEFTOVER.search(said):
            found.setdefault(said.casefold(), said)
    return list(found.values())
