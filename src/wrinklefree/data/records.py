"""Records with several fields, for labelled data: the lines of a jsonl file, the rows of a Hugging Face data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from wrinklefree.data.document import SourceConfig
from wrinklefree.data.sources import huggingface_records, jsonl_files, read_text
from wrinklefree.errors import InputError


@dataclass(frozen=True)
class Record:
    """The fields of one example, and where it stands, for messages."""

    place: str
    values: dict[str, Any]


def read_records(source: SourceConfig) -> list[Record]:
    """Return the records of a jsonl file or directory, or of a Hugging Face data set, in their order.

    Raises: InputError for another kind of source, a line that is no JSON object, or nothing found.
    """
    if source.kind not in ("jsonl", "huggingface"):
        raise InputError(
            f"data.sources: found kind {source.kind!r}, a task needs records with fields: data=FILE.jsonl, or a source "
            "of kind jsonl or huggingface"
        )
    if source.limit is not None and source.limit < 1:
        raise InputError(f"limit: found {source.limit}, at least 1 record is needed")
    records = list(islice(_jsonl(source) if source.kind == "jsonl" else _huggingface(source), source.limit))
    if not records:
        raise InputError(f"{source.path}: found no record in it")
    return records


def _jsonl(source: SourceConfig) -> Iterator[Record]:
    for path in jsonl_files(source):
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not valid JSON ({type(error).__name__})") from error
            if not isinstance(values, dict):
                raise InputError(f"{place}: found a JSON {type(values).__name__}, an object is needed")
            yield Record(place, values)


def _huggingface(source: SourceConfig) -> Iterator[Record]:
    for index, values in enumerate(huggingface_records(source)):
        yield Record(f"data set {source.path}, record {index}", values)
