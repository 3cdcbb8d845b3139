"""Reading what a GGUF file says of itself, through the `gguf` package, with one kind of error.

The package reports damage as IndexError, ValueError, UnicodeDecodeError and others; here each becomes a
FormatError. It also believes the counts in the file, so the sizes that decide how much memory and time reading
takes are checked first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.errors import FormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS = 65_536
MAX_KEYS = 65_536
# Metadata values longer than this (vocabularies, merges) are described, not listed.
_MAX_LISTED = 16


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table; ``shape`` in NumPy's order, slowest dimension first."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """Metadata and tensor table of a GGUF file. Long arrays in ``metadata`` are given as their length."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", "unknown"))


def is_gguf(path: str | Path) -> bool:
    """Return whether a path is a file that starts with GGUF's magic."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except OSError:
        return False


def read_gguf(path: str | Path) -> GgufFile:
    """Return metadata and tensor table of a GGUF file, reading no tensor data.

    Raises: FormatError when the file is missing, damaged, or of an unknown version.
    """
    path = Path(path)
    version = _check_counts(path)
    from gguf import GGUFReader  # takes a third of a second, so only whoever reads GGUF pays

    try:
        with np.errstate(over="raise"):
            reader = GGUFReader(str(path))
        metadata = {name: _value(field) for name, field in reader.fields.items()}
        tensors = tuple(
            GgufTensor(
                tensor.name,
                tensor.tensor_type.name,
                tuple(int(size) for size in reversed(tensor.shape)),
                int(tensor.n_bytes),
                int(tensor.data_offset),
            )
            for tensor in reader.tensors
        )
    except (ValueError, LookupError, OSError, ArithmeticError, MemoryError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: a damaged GGUF file ({type(error).__name__}: {error})") from error
    size = path.stat().st_size
    for tensor in tensors:
        if tensor.offset + tensor.num_bytes > size:
            raise FormatError(f"{path}: {tensor.name}: reaches beyond the end of the file; truncated?")
    return GgufFile(path, version, metadata, tensors)


def _check_counts(path: Path) -> int:
    """Return the version after checking the fixed part of the header: magic, version, two counts."""
    try:
        with path.open("rb") as stream:
            head = stream.read(24)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error
    if len(head) < 24 or head[:4] != MAGIC:
        raise FormatError(f"{path}: not a GGUF file (it starts with {head[:4]!r})")
    version, tensors, keys = struct.unpack("<IQQ", head[4:])
    if version not in VERSIONS:
        raise FormatError(f"{path}: GGUF version {version}, allowed are {VERSIONS}")
    if tensors > MAX_TENSORS or keys > MAX_KEYS:
        raise FormatError(f"{path}: {tensors} tensors and {keys} keys exceed the limits; the file is damaged")
    return int(version)


def _value(field: Any) -> Any:
    if len(field.data) > _MAX_LISTED:
        return f"[{len(field.data)} values]"
    value = field.contents()
    return value.item() if hasattr(value, "item") else value
