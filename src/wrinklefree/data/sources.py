"""Where documents come from: a plain dict from a kind to a function. The only door to the `datasets` package.

A new source is a function ``SourceConfig -> Iterator[Document]`` and one line in ``SOURCES``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.python_docs import python_docs
from wrinklefree.errors import InputError, MissingDependencyError, unknown_name


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

    ``python-docs`` is the offline default; ``*.jsonl`` a jsonl file; anything else a text file or directory.
    """
    if name == "python-docs":
        return SourceConfig()
    return SourceConfig(kind="jsonl" if name.endswith(".jsonl") else "text", path=name)


def read_text(path: Path) -> str:
    """Return a UTF-8 file's text, without a byte order mark, line ends as ``\\n``.

    Raises: InputError when it is missing, not a file, unreadable or not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: found a byte that is not UTF-8 at offset {error.start}; convert it, e.g. iconv -t UTF-8"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return text.replace("\r\n", "\n")


def _place(config: SourceConfig) -> str:
    return config.path or config.kind


def _files(config: SourceConfig, suffix: str) -> list[tuple[str, Path]]:
    """Return (name, path) of the one file, or of a directory's files with the suffix, sorted by name."""
    if not config.path:
        raise InputError(f"data source {config.kind}: no path given; set path to a {suffix} file or a directory")
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if not path.is_dir():
        return [(path.name, path)]
    found = sorted(path.rglob(f"*{suffix}"))
    if not found:
        raise InputError(f"{path}: the directory holds no {suffix} file")
    return [(file.relative_to(path).as_posix(), file) for file in found]


def jsonl_files(config: SourceConfig) -> list[Path]:
    """Return the one jsonl file of a source, or those of a directory. Raises: InputError when there is none."""
    return [path for _, path in _files(config, ".jsonl")]


def _text(config: SourceConfig) -> Iterator[Document]:
    """A whole file is one document; a directory gives one for each ``*.txt`` below it."""
    for name, path in _files(config, ".txt"):
        yield Document(f"text:{name}", read_text(path))


def _jsonl(config: SourceConfig) -> Iterator[Document]:
    """A line is one document: a JSON object with the text in ``field``."""
    for name, path in _files(config, ".jsonl"):
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if line.strip():
                yield Document(f"jsonl:{name}:{number}", _record_text(f"{path}, line {number}", line, config.field))


def _record_text(place: str, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: found a JSON {type(record).__name__}, an object is needed")
    return _field(place, record, field)


def _field(place: str, record: dict[str, Any], field: str) -> str:
    if field not in record:
        raise unknown_name(f"{place}: text field", field, map(str, record))
    if not isinstance(record[field], str):
        raise InputError(f"{place}: field {field!r} holds a {type(record[field]).__name__}, a string is needed")
    text: str = record[field]
    return text


def _huggingface(config: SourceConfig) -> Iterator[Document]:
    """A record of a Hugging Face data set is one document."""
    for index, record in enumerate(huggingface_records(config)):
        text = _field(f"data set {config.path}, record {index}", record, config.field)
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
            "kind=python-docs, text and jsonl need no network"
        ) from error


def _python_docs(config: SourceConfig) -> Iterator[Document]:
    yield from python_docs(config.docstrings)


SOURCES: dict[str, Callable[[SourceConfig], Iterator[Document]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "huggingface": _huggingface,
    "python-docs": _python_docs,
}
