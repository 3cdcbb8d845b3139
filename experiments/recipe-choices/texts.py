"""Python's own documentation as two files, split once: what every arm trains on, and what it is scored on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

TRAIN, HELD_OUT = "train.jsonl", "held-out.jsonl"


def write_texts(directory: Path) -> None:
    """Write both files; paragraphs that share eight words with held-out text are not trained on.

    An arm of a minute would otherwise read the whole standard library again first.
    """
    from wrinklefree.data.build import split_sources
    from wrinklefree.data.document import Document, SourceConfig

    def write(name: str, documents: Sequence[Document]) -> None:
        lines = (json.dumps({"text": document.text}, ensure_ascii=False) for document in documents)
        (partial / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    partial = directory.with_name(f".{directory.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    (part,) = split_sources((SourceConfig(),), 0.1)
    write(TRAIN, part.train)
    write(HELD_OUT, part.held_out)
    partial.rename(directory)
