"""Parquet files and compressed lines. The only door to `pyarrow`, which the datasets package brings along."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wrinklefree.data.document import Document, SourceConfig
from wrinklefree.data.files import source_files
from wrinklefree.errors import InputError, MissingDependencyError, unknown_name

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_ROWS = 1024  # read at a time


def parquet(config: SourceConfig) -> Iterator[Document]:
    """A row is one document, its text the string column ``field``; only that column is read, a few rows at a time."""
    arrow = _arrow("reading parquet")
    for name, path in source_files(config, ".parquet"):
        try:
            with arrow.parquet.ParquetFile(path) as file:
                _check_column(arrow, path, file.schema_arrow, config.field)
                rows = 0
                for batch in file.iter_batches(_ROWS, columns=[config.field]):
                    for text in batch.column(0).to_pylist():
                        rows += 1
                        if text is None:
                            raise InputError(f"{path}, row {rows}: field {config.field!r} is null, a string is needed")
                        yield Document(f"parquet:{name}:{rows}", text)
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from error


def compressed_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a gzip or zstd file of UTF-8 text, unpacked as they are asked for.

    Raises: InputError when it is damaged or not UTF-8, MissingDependencyError without pyarrow.
    """
    arrow = _arrow(f"reading {path.suffix} files")
    try:
        with arrow.input_stream(str(path), compression=COMPRESSIONS[path.suffix]) as stream:
            for line in io.TextIOWrapper(stream, "utf-8-sig", newline="\n"):
                yield line.rstrip("\r\n")
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error


def _check_column(arrow: Any, path: Path, schema: Any, field: str) -> None:
    if field not in schema.names:
        raise unknown_name(f"{path}: text field", field, schema.names)
    kind = schema.field(field).type
    inner = kind.value_type if arrow.types.is_dictionary(kind) else kind
    if not (arrow.types.is_string(inner) or arrow.types.is_large_string(inner) or arrow.types.is_string_view(inner)):
        raise InputError(f"{path}: column {field!r} holds {kind}, strings are needed")


def _damaged(path: Path, error: Exception) -> InputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path}: cannot be read ({reason}); it is damaged, or not what its name says")


def _arrow(what: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
        import pyarrow.types
    except ImportError as error:
        raise MissingDependencyError(f"{what} needs the pyarrow package: pip install 'wrinklefree[train]'") from error
    return pyarrow
