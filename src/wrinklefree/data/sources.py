"""Where documents come from: a plain dict from a kind to a function. The only door to the `datasets` package.

A new source is a function ``SourceConfig -> Iterator[Document]`` and one line in ``SOURCES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from wrinklefree.data.arrow import COMPRESSIONS, compressed_lines, parquet
from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.files import field_text, json_text, read_text, source_files
from wrinklefree.data.python_docs import python_docs
from wrinklefree.errors import InputError, MissingDependencyError, unknown_name

_JSONL = (".jsonl", *(f".jsonl{ending}" for ending in COMPRESSIONS))


def read_documents(config: SourceConfig) -> list[Document]:
    """Return the documents of a source, in the source's order; blank ones are left out.

    Raises: InputError when the kind is unknown, the source cannot be read, or nothing but blanks is in it.
    """
    if config.kind not in SOURCES:
        raise unknown_name("source kind", config.kind, SOURCES)
    if config.limit is not None and config.limit < 1:
        raise InputError(f"limit: found {config.limit}, at least 1 document is needed")
    documents = (document for document in SOURCES[config.kind](config) if document.text.strip())
    found = list(islice(documents, config.limit))
    if not found:
        raise InputError(f"{_place(config)}: found no text in it; give a source that has some")
    return found


def source_from_name(name: str) -> SourceConfig:
    """Return the source a single word on the command line means.

    ``python-docs`` is the offline default; ``*.jsonl`` (also with ``.gz`` or ``.zst``) a jsonl file, ``*.parquet`` a
    parquet file; anything else a text file or directory.
    """
    if name == "python-docs":
        return SourceConfig()
    if name.endswith(".parquet"):
        return SourceConfig(kind="parquet", path=name)
    return SourceConfig(kind="jsonl" if name.endswith(_JSONL) else "text", path=name)


def _place(config: SourceConfig) -> str:
    return config.path or config.kind


def jsonl_files(config: SourceConfig) -> list[Path]:
    """Return the jsonl files of a source, plain ones only. Raises: InputError when there is none."""
    return [path for _, path in source_files(config, ".jsonl")]


def _text(config: SourceConfig) -> Iterator[Document]:
    """A whole file is one document; a directory gives one for each ``*.txt`` below it."""
    for name, path in source_files(config, ".txt"):
        yield Document(f"text:{name}", read_text(path))


def _jsonl(config: SourceConfig) -> Iterator[Document]:
    """A line is one document: a JSON object with the text in ``field``. Files may be compressed."""
    for name, path in source_files(config, *_JSONL):
        lines = compressed_lines(path) if path.suffix in COMPRESSIONS else read_text(path).split("\n")
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Document(f"jsonl:{name}:{number}", json_text(f"{path}, line {number}", line, config.field))


def _huggingface(config: SourceConfig) -> Iterator[Document]:
    """A record of a Hugging Face data set is one document."""
    for index, record in enumerate(huggingface_records(config)):
        text = field_text(f"data set {config.path}, record {index}", record, config.field)
        yield Document(f"hf:{config.path}:{config.name or ''}:{config.split}:{index}", text)


def huggingface_records(config: SourceConfig) -> Iterator[dict[str, Any]]:
    """Yield the records of a Hugging Face data set. Raises: InputError when it cannot be loaded."""
    if not config.path:
        raise InputError("data source huggingface: no path given; set path to the data set's name, e.g. owner/name")
    if config.streaming and config.limit is None:
        raise InputError(f"{config.path}: streaming needs limit=NUMBER, a stream has no end of its own")
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "reading Hugging Face data sets needs the datasets package: pip install 'wrinklefree[train]'"
        ) from error
    try:
        records = datasets.load_dataset(config.path, config.name, split=config.split, streaming=config.streaming)
        for record in records:
            yield dict(record)
    except Exception as error:  # the library raises a dozen unrelated types for "no such name" and "no network"
        raise InputError(
            f"data set {config.path} (split {config.split}): cannot be loaded ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}); check the name and the network; "
            "kind=python-docs, text, jsonl and parquet need no network"
        ) from error


def _python_docs(config: SourceConfig) -> Iterator[Document]:
    yield from python_docs(config.docstrings)


SOURCES: dict[str, Callable[[SourceConfig], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": parquet,
    "huggingface": _huggingface,
    "python-docs": _python_docs,
}
