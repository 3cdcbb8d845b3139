"""What each pass of an answer decided, written as JSON lines for `wf trace` and other viewers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrinklefree.artifact.files import write_bytes
from wrinklefree.engine.decoding import Decided, Turn
from wrinklefree.engine.decoding_settings import DEFAULT_SUB_BLOCK
from wrinklefree.engine.modes import read_marker

if TYPE_CHECKING:
    from wrinklefree.engine.engine import Engine
    from wrinklefree.engine.generation import Generation

FORMAT = 1


class TraceRecorder:
    """An observer for `Engine.generate` that remembers every pass.

    The file has a header ``{format, mode, block_size, sub_block, mask_token_id, prompt, texts}``, a line for each pass
    ``{pass, rows: [first, last], decided: [[position, token, confidence, text], ...], waiting: [[position, best token,
    confidence, text], ...], ms}``, and at the end ``{end: reason, tokens, forwards}``. Positions count from the
    beginning of the prompt. ``block_size`` and ``sub_block`` are null where text is not decided in blocks; confidences
    are null where nobody asked for them.
    """

    def __init__(self, engine: Engine, prompt: list[int], sub_block: int | None) -> None:
        """``prompt``: its ids; ``sub_block`` as in `DecodingSettings`."""
        self._engine = engine
        self._prompt = prompt
        self._sub_block = sub_block
        self._passes: list[dict[str, Any]] = []

    def __call__(self, turn: Turn, waiting: list[Decided]) -> None:
        """Remember one pass."""
        self._passes.append(
            {
                "pass": len(self._passes) + 1,
                "rows": [turn.first, turn.last],
                "decided": [self._mark(one) for one in turn.decided],
                "waiting": [self._mark(one) for one in waiting],
                "ms": round(turn.seconds * 1000, 3),
            }
        )

    def write(self, path: Path, answer: Generation) -> None:
        """Write the file, at once and whole; without the last line for an answer that was broken off."""
        lines = [self._header(answer.mode), *self._passes]
        if answer.finish_reason is not None:
            lines.append({"end": answer.finish_reason, "tokens": answer.tokens, "forwards": answer.forwards})
        text = "".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n" for line in lines)
        write_bytes(path, text.encode("utf-8", "replace"))

    def _header(self, mode: str) -> dict[str, Any]:
        marker = read_marker(self._engine.config)
        size = marker.block_size if marker is not None and mode == "block" else None
        return {
            "format": FORMAT,
            "mode": mode,
            "block_size": size,
            "sub_block": None if size is None else min(self._sub_block or DEFAULT_SUB_BLOCK, size),
            "mask_token_id": None if marker is None else marker.mask_token_id,
            "prompt": self._prompt,
            "texts": [self._text(token) for token in self._prompt],
        }

    def _mark(self, one: Decided) -> list[Any]:
        confidence = None if one.confidence is None else round(one.confidence, 6)
        return [one.position, one.token, confidence, self._text(one.token)]

    def _text(self, token: int) -> str:
        return self._engine.tokenizer.decode([token], skip_special=False) if self._engine.has_tokenizer else ""
