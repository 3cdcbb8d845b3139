"""The text of an evaluation, cut into windows once, so that every model is scored on exactly the same tokens.

A document is cut into windows of ``window`` tokens that start every ``stride`` tokens. Each token is scored in the
first window that holds it, except a document's very first token, which nothing predicts. With ``stride == window``
(the default, the cheapest) windows do not overlap and the first token of each one is not scored either; a smaller
stride gives later tokens at least ``window - stride`` tokens of context, a lower loss, and costs window / stride times
as much. Figures are comparable only at the same window and stride, so a report states both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from wrinklefree.data.document import Document
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, topics
from wrinklefree.data.sources import read_documents, source_from_name
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.data.packing import PackedSequences

PYTHON_DOCS = "python-docs"


@dataclass(frozen=True)
class Window:
    """``tokens`` int64 [T]; those from index ``scored_from`` >= 1 on are scored."""

    tokens: NDArray[np.int64]
    scored_from: int

    @property
    def num_scored(self) -> int:
        return len(self.tokens) - self.scored_from


@dataclass(frozen=True)
class EvaluationText:
    """Windows of a text. ``num_tokens`` and ``num_bytes`` are those of the whole text, for bits per byte.

    ``num_bytes`` is 0 where only tokens are known (see `from_packed`): then there are no bits per byte.
    """

    name: str
    windows: tuple[Window, ...]
    window: int
    stride: int
    num_tokens: int
    num_bytes: int

    @property
    def num_scored(self) -> int:
        return sum(window.num_scored for window in self.windows)

    def limited(self, tokens: int) -> EvaluationText:
        """Return windows spread evenly over the text that together score about ``tokens`` tokens, at least one."""
        mean = self.num_scored / len(self.windows)
        count = min(len(self.windows), max(1, round(tokens / mean)))
        chosen = {int((i + 0.5) * len(self.windows) / count) for i in range(count)}
        return replace(self, windows=tuple(self.windows[i] for i in sorted(chosen)))


def evaluation_documents(name: str) -> list[Document]:
    """Return the documents that a file, a directory, or the name ``python-docs`` (the held-out topics) stands for.

    Raises: InputError when it cannot be read, is not UTF-8 or is empty.
    """
    if name == PYTHON_DOCS:
        return [document for document in topics() if document.id in HELD_OUT_TOPICS]
    return read_documents(source_from_name(name))


def evaluation_text(
    documents: Sequence[Document],
    encode: Callable[[str], list[int]],
    window: int = 512,
    stride: int | None = None,
    name: str = "text",
) -> EvaluationText:
    """Return the windows of documents; no end token is added, the text is scored as it stands.

    Raises: InputError for a window below 2, a stride outside 1 to window, or text shorter than two tokens.
    """
    stride = window if stride is None else stride
    if window < 2 or not 1 <= stride <= window:
        raise InputError(
            f"window {window}, stride {stride}: the window must hold 2 tokens, the stride be in 1 to window"
        )
    windows: list[Window] = []
    num_tokens = 0
    for document in documents:
        ids = np.asarray(encode(document.text), np.int64)
        num_tokens += len(ids)
        windows += _windows(ids, window, stride)
    if not windows:
        raise InputError(f"{name}: {num_tokens} tokens in {len(documents)} documents; a text needs 2 to be scored")
    num_bytes = sum(len(document.text.encode()) for document in documents)
    return EvaluationText(name, tuple(windows), window, stride, num_tokens, num_bytes)


def from_packed(sequences: PackedSequences, name: str = "held-out") -> EvaluationText:
    """Return the windows a packed data set trains on or holds out: one for each document's part of each sequence.

    The loss over them is the next-token loss of a training batch of the same sequences.
    """
    windows = []
    for index in range(len(sequences)):
        ids, _, positions, documents = sequences.row(index)
        starts = [*np.flatnonzero((positions == 0) & (documents >= 0)), int((documents >= 0).sum())]
        pieces = (ids[first:last] for first, last in pairwise(starts))
        windows += [Window(piece, 1) for piece in pieces if len(piece) > 1]
    if not windows:
        raise InputError(f"{name}: no sequence holds two tokens of one document")
    length = sequences.length
    return EvaluationText(name, tuple(windows), length, length, sequences.documents.num_tokens, 0)


def _windows(ids: NDArray[np.int64], window: int, stride: int) -> list[Window]:
    found: list[Window] = []
    scored = 1
    for start in range(0, len(ids), stride):
        stop = min(start + window, len(ids))
        scored = max(scored, start + 1)
        if stop > scored:
            found.append(Window(ids[start:stop], scored - start))
            scored = stop
        if stop == len(ids):
            break
    return found
