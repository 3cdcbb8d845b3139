"""Files and records on this machine: which ones a source means, their text, and every way in which that can fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrinklefree.data.document import SourceConfig
from wrinklefree.errors import InputError, unknown_name


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


def source_files(config: SourceConfig, *suffixes: str) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of the one file, or of a directory's files with one of the suffixes, sorted by name.

    Raises: InputError when no path is given or nothing is there.
    """
    allowed = " or ".join(suffixes)
    if not config.path:
        raise InputError(f"data source {config.kind}: no path given; set path to a {allowed} file or a directory")
    path = Path(config.path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if not path.is_dir():
        yield path.name, path
        return
    found = sorted(file for file in path.rglob("*") if file.name.endswith(suffixes) and file.is_file())
    if not found:
        raise InputError(f"{path}: the directory holds no {allowed} file")
    for file in found:
        yield file.relative_to(path).as_posix(), file


def json_text(place: str, line: str, field: str) -> str:
    """Return the text in ``field`` of the JSON object on a line.

    Raises: InputError when it is no JSON object or has no such text.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not valid JSON ({type(error).__name__})") from error
    if not isinstance(record, dict):
        raise InputError(f"{place}: found a JSON {type(record).__name__}, an object is needed")
    return field_text(place, record, field)


def field_text(place: str, record: dict[str, Any], field: str) -> str:
    """Return a record's text; nothing else than a string in that very field will do.

    Raises: InputError, with the nearest match for an unknown field.
    """
    if field not in record:
        raise unknown_name(f"{place}: text field", field, map(str, record))
    if not isinstance(record[field], str):
        raise InputError(f"{place}: field {field!r} holds a {type(record[field]).__name__}, a string is needed")
    text: str = record[field]
    return text
