"""The unit of text everything in this package passes on, and the settings that name where it comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """A text and a name for it that is the same on every machine and in every run."""

    id: str
    text: str


@dataclass(frozen=True)
class SourceConfig:
    """Where documents come from.

    ``kind``: a name in ``SOURCES``.
    ``path``: file or directory (text, jsonl, parquet) or data set name (huggingface).
    ``field``: name of the text field of a record (jsonl, parquet, huggingface).
    ``name``, ``split``, ``streaming``: configuration, split and streaming flag of a Hugging Face data set.
    ``docstrings``: whether python-docs adds the standard library's docstrings to the topics.
    ``limit``: at most so many documents, in the source's order; None takes all (streaming needs one).
    ``weight``: share of this source in a mixture, relative to the other sources' weights.
    """

    kind: str = "python-docs"
    path: str | None = None
    field: str = "text"
    name: str | None = None
    split: str = "train"
    streaming: bool = False
    docstrings: bool = True
    limit: int | None = None
    weight: float = 1.0
