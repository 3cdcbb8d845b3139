"""Records with several fields, for labelled data: the lines of a jsonl file, the rows of a Hugging Face data set, or
the film reviews of an installed package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from wrinklefree.data.document import SourceConfig
from wrinklefree.data.movie_reviews import movie_reviews
from wrinklefree.data.sources import huggingface_records, jsonl_files, read_text
from wrinklefree.errors import InputError


@dataclass(frozen=True)
class Record:
    """The fields of one example, and where it stands, for messages."""

    place: str
    values: dict[str, Any]


def read_records(source: SourceConfig) -> list[Record]:
    """Return the records of a source, in their order: a jsonl file or directory, or a kind that has splits.

    Raises: InputError for another kind of source, a line that is no JSON object, or nothing found.
    """
    if source.kind not in _KINDS:
        raise InputError(
            f"data.sources: found kind {source.kind!r}, a task needs records with fields: data=FILE.jsonl, or a source "
            f"of kind {', '.join(_KINDS)}"
        )
    if source.limit is not None and source.limit < 1:
        raise InputError(f"limit: found {source.limit}, at least 1 record is needed")
    records = list(islice(_KINDS[source.kind](source), source.limit))
    if not records:
        raise InputError(f"{source.path or source.kind}: found no record in it")
    return records


def in_split(source: SourceConfig, split: str) -> SourceConfig:
    """Return the same source's other ``split``, all of it unless it is streamed.

    Raises: InputError for a file, which has no splits.
    """
    if source.kind == "jsonl":
        raise InputError("task.held_out_split: a file has no splits; give the held-out file as task.held_out")
    return replace(source, split=split, limit=source.limit if source.streaming else None)


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


def _movie_reviews(source: SourceConfig) -> Iterator[Record]:
    for index, values in enumerate(movie_reviews(source.split)):
        yield Record(f"movie-reviews, {source.split}, record {index}", values)


_KINDS: dict[str, Callable[[SourceConfig], Iterator[Record]]] = {
    "jsonl": _jsonl,
    "huggingface": _huggingface,
    "movie-reviews": _movie_reviews,
}
