"""Held-out text as the figures read it: the same windows of the same documents for every model.

The first window of every document comes first, then every second one, and so on, until there are enough tokens: many
documents, because figures differ more between documents than within one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wrinklefree.data.document import Document
from wrinklefree.eval.scorer import Request
from wrinklefree.eval.text import EvaluationText, Window, evaluation_documents

TRAINED = ("chat", "continuation", "docs", "reviews", "addresses")
UNSEEN = ("novel", "code")  # kinds of which nothing was calibrated or trained on


@dataclass(frozen=True)
class HeldText:
    """``windows[i]`` is of the document ``documents[i]``, int64; ``texts``: those documents, whole.

    ``num_tokens``, ``num_bytes``: of the whole documents, for bits per byte. ``window``: most tokens of one.
    """

    kind: str
    windows: tuple[Window, ...]
    documents: NDArray[np.int64]
    texts: tuple[str, ...]
    num_tokens: int
    num_bytes: int
    window: int

    @property
    def requests(self) -> list[Request]:
        return [Request(window.tokens, window.scored_from) for window in self.windows]

    @property
    def counts(self) -> list[int]:
        """Scored tokens of each document."""
        sizes = [window.num_scored for window in self.windows]
        return np.bincount(self.documents, weights=sizes, minlength=len(self.texts)).astype(int).tolist()

    @cached_property
    def sha256(self) -> str:
        """Of the tokens of all windows."""
        return hashlib.sha256(b"".join(b"|" + window.tokens.tobytes() for window in self.windows)).hexdigest()

    def of(self, document: int | None = None) -> EvaluationText:
        """Return the windows, or those of one document, for the functions of `wrinklefree.eval`."""
        chosen = [w for w, at in zip(self.windows, self.documents, strict=True) if document is None or at == document]
        return EvaluationText(self.kind, tuple(chosen), self.window, self.window, self.num_tokens, self.num_bytes)


def held_path(corpus: Path, kind: str) -> Path:
    return corpus / f"held-{kind}.jsonl"


def kinds_in(corpus: Path) -> list[str]:
    """Return the kinds of text that a corpus has, those trained on first."""
    return [kind for kind in (*TRAINED, *UNSEEN) if held_path(corpus, kind).is_file()]


def held_text(corpus: Path, kind: str, encode: Callable[[str], list[int]], tokens: int, window: int) -> HeldText:
    """Return windows of a kind's held-out documents with at least ``tokens`` scored tokens, where there are so many.

    Raises: InputError when the file cannot be read; SystemExit when no document has two tokens.
    """
    path = held_path(corpus, kind)
    cut = [(document, _windows(encode, document, window)) for document in evaluation_documents(str(path))]
    chosen: list[tuple[int, Window]] = []
    scored, turn = 0, 0
    while scored < tokens and any(len(windows) > turn for _, windows in cut):
        for number, (_, windows) in enumerate(cut):
            if scored < tokens and len(windows) > turn:
                chosen.append((number, windows[turn]))
                scored += windows[turn].num_scored
        turn += 1
    if not chosen:
        raise SystemExit(f"{path}: found no document of two tokens")
    names = sorted({number for number, _ in chosen})
    texts = tuple(cut[number][0].text for number in names)
    return HeldText(
        kind, tuple(each for _, each in chosen), np.array([names.index(number) for number, _ in chosen]), texts,
        sum(len(encode(text)) for text in texts), sum(len(text.encode()) for text in texts), window,
    )  # fmt: skip


def _windows(encode: Callable[[str], list[int]], document: Document, window: int) -> list[Window]:
    ids = np.asarray(encode(document.text), np.int64)
    pieces = (ids[at : at + window] for at in range(0, len(ids), window))
    return [Window(piece, 1) for piece in pieces if len(piece) > 1]
