"""GGUF files: a checked reader that hands out views, and a streaming writer.

File, all little endian: ``GGUF``, the version as uint32 (2 or 3, which do not differ here), the number of tensors and
of keys as uint64; the keys with their values (`metadata`); per tensor its name, the number of its dimensions as
uint32, the dimensions as uint64 with the fastest first, the number of its type as uint32, and as uint64 the place of
its bytes, which counts from the first multiple of the alignment behind this table and is a multiple of it.

The reader believes nothing: every count is compared with the file's size before it decides over memory or time.

Source: the GGUF specification (docs/gguf.md of ggml) and ggml/src/gguf.cpp of llama.cpp.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.metadata import U32, Cursor, Metadata, Value, pack_pair, pack_string
from wrinklefree.artifact.gguf.types import AMBIGUOUS, BY_NUMBER, PLAIN_DTYPES, GgufType
from wrinklefree.artifact.whole_file import WholeFile
from wrinklefree.errors import FormatError, InputError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
WRITTEN_VERSION = 3
ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
ARCHITECTURE_KEY = "general.architecture"
MAX_ALIGNMENT = 65_536
MAX_TENSORS = 16_384
MAX_KEYS = 16_384
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 255
# What llama.cpp can read (GGML_MAX_NAME less the closing zero).
MAX_WRITTEN_NAME_BYTES = 63
# The least that a key with its value, and an entry of the tensor table, can take.
_LEAST_KEY_BYTES = 8 + 1 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8

_COUNTS = struct.Struct("<QQ")
# The rest of an entry of the tensor table, by its number of dimensions.
_ENTRIES = [struct.Struct(f"<{dimensions}QIQ") for dimensions in range(MAX_DIMENSIONS + 1)]

T = TypeVar("T")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its type, its ``shape`` in NumPy's order (slowest first), and its bytes' place in the file."""

    name: str
    type: GgufType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int

    @property
    def type_name(self) -> str:
        return self.type.name


class GgufFile:
    """A checked GGUF file, mapped into memory; of the tensors nothing is read until `data` is asked for."""

    def __init__(self, data: memoryview, path: Path) -> None:
        """Check the file whose bytes are ``data``; ``path`` names it in messages.

        Raises: FormatError naming file, place and key or tensor.
        """
        self.path = path
        self._data = data
        cursor = Cursor(data, path)
        self.version, tensors, keys = _read_counts(cursor)
        self.metadata = Metadata(cursor, keys)
        self.alignment = _alignment(self.metadata, path)
        self.tensors: Mapping[str, GgufTensor] = _read_tensors(cursor, tensors, self.alignment)

    @property
    def architecture(self) -> str:
        """The name of the architecture. Raises: FormatError when the file has none."""
        return self.text(ARCHITECTURE_KEY)

    def data(self, name: str) -> NDArray[np.uint8]:
        """Return a read-only view of a tensor's bytes. Raises: FormatError when there is no such tensor."""
        if name not in self.tensors:
            raise FormatError(f"{self.path}: has no tensor {name!r}")
        tensor = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.offset)

    def text(self, key: str, default: T | EllipsisType = ...) -> str | T:
        """Return a string. Raises: FormatError when it is no string, or missing and there is no ``default``."""
        return self._typed(key, str, "a string", default)

    def flag(self, key: str, default: T | EllipsisType = ...) -> bool | T:
        """Return a truth value. Raises: FormatError as `text` does."""
        return self._typed(key, bool, "a truth value", default)

    def size(self, key: str, most: int, default: T | EllipsisType = ..., least: int = 0) -> int | T:
        """Return an integer from ``least`` to ``most``. Raises: FormatError as `text` does, or beyond them."""
        value = self._typed(key, int, "an integer", default)
        if isinstance(value, bool) or (key in self.metadata and not least <= value <= most):
            raise FormatError(f"{self.path}: {key}: found {value!r}, an integer from {least} to {most} is needed")
        return value

    def number(self, key: str, default: T | EllipsisType = ...) -> float | T:
        """Return a finite number. Raises: FormatError as `text` does, or for NaN and infinities."""
        value = self._typed(key, int | float, "a number", default)
        if key not in self.metadata:
            return value
        if isinstance(value, bool) or not np.isfinite(value):
            raise FormatError(f"{self.path}: {key}: found {value!r}, a finite number is needed")
        return float(value)

    def texts(self, key: str, default: T | EllipsisType = ...) -> list[str] | T:
        """Return an array of strings. Raises: FormatError as `text` does."""
        value = self._typed(key, list | np.ndarray, "an array of strings", default)
        if isinstance(value, np.ndarray) and value.size:
            raise FormatError(f"{self.path}: {key}: found an array of {value.dtype}, an array of strings is needed")
        return [] if isinstance(value, np.ndarray) else value

    def numbers(self, key: str, default: T | EllipsisType = ...) -> NDArray[Any] | T:
        """Return an array of numbers or truth values. Raises: FormatError as `text` does."""
        return self._typed(key, np.ndarray, "an array of numbers", default)

    def _typed(self, key: str, kind: Any, what: str, default: Any) -> Any:
        if key not in self.metadata:
            if default is ...:
                raise FormatError(f"{self.path}: has no key {key!r}")
            return default
        value = self.metadata[key]
        if not isinstance(value, kind):
            raise FormatError(f"{self.path}: {key}: found {_shown(value)}, {what} is needed")
        return value


def is_gguf(path: str | Path) -> bool:
    """Return whether a path is a file that starts with GGUF's magic."""
    path = Path(path)
    try:
        if not path.is_file():  # opening a pipe would wait for whoever writes into it
            return False
        with path.open("rb") as stream:
            return stream.read(4) == MAGIC
    except (OSError, ValueError):
        return False


def read_gguf(path: str | Path) -> GgufFile:
    """Return metadata and tensor table of a GGUF file, reading no tensor data.

    Raises: FormatError when the file is missing, damaged, big endian, or of an unknown version.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise FormatError(f"{path}: found no such file")
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise FormatError(f"{path}: not a GGUF file (it is empty)")
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from error
    return GgufFile(data, path)


class GgufWriter(WholeFile):
    """Writes one file tensor by tensor, in any order, and gives it its name only when every tensor is there.

    Use it as a context manager; when the block raises, nothing is left. The same content gives the same bytes.
    """

    def __init__(
        self,
        path: str | Path,
        metadata: Mapping[str, Value | np.generic],
        tensors: Sequence[tuple[str, GgufType, tuple[int, ...]]],
    ) -> None:
        """Reserve the file for these tensors, which follow each other in this order.

        The alignment is 32, or what ``metadata`` says under ``general.alignment``.

        Raises: InputError for a value or name that the format cannot hold, or when there is no space.
        """
        alignment = _checked_alignment(metadata.get(ALIGNMENT_KEY, ALIGNMENT), Path(path), InputError)
        header, self.tensors, end = _layout(Path(path), metadata, tensors, alignment)
        super().__init__(Path(path), header, end, self.tensors)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write a tensor: its bytes as uint8, or for a type of plain numbers an array of that type and shape.

        Raises: InputError when it is unknown, written already, or of another type or size.
        """
        tensor = self.tensors.get(name)
        if tensor is None or not self.is_missing(name):
            raise InputError(f"{self.path}: tensor {name!r} was not announced or is written already")
        plain = PLAIN_DTYPES.get(tensor.type.name)
        as_bytes = array.dtype == np.uint8 and array.nbytes == tensor.num_bytes
        if not as_bytes and (plain is None or array.dtype.newbyteorder("<") != plain or array.shape != tensor.shape):
            raise InputError(
                f"{self.path}: {name}: found {array.dtype} {list(array.shape)}, announced {tensor.type.name} "
                f"{list(tensor.shape)} of {tensor.num_bytes} bytes"
            )
        stored = np.ascontiguousarray(array, np.uint8 if as_bytes else plain)
        self.put(name, tensor.offset, stored.reshape(-1).view(np.uint8).data)


def _read_counts(cursor: Cursor) -> tuple[int, int, int]:
    """Return version, number of tensors and number of keys, each within what the file's size allows."""
    head = bytes(cursor.data[:4])
    if head != MAGIC:
        raise FormatError(f"{cursor.path}: not a GGUF file (it starts with {head!r})")
    cursor.skip(4, "the", "magic")
    (version,) = cursor.read(U32, "the", "version")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in range(1, 16):
            cursor.fail("the file is big endian; only little endian files are read (convert it with gguf's scripts)")
        cursor.fail(f"found GGUF version {version}, allowed are {' and '.join(map(str, VERSIONS))}")
    tensors, keys = cursor.read(_COUNTS, "the", "counts")
    for found, most, least_bytes, what in (
        (tensors, MAX_TENSORS, _LEAST_TENSOR_BYTES, "tensors"),
        (keys, MAX_KEYS, _LEAST_KEY_BYTES, "keys"),
    ):
        if found > min(most, cursor.left // least_bytes):
            cursor.fail(
                f"the header claims {found} {what}; the limit is {most}, and {cursor.left} bytes follow; truncated?"
            )
    return version, tensors, keys


def _alignment(metadata: Metadata, path: Path) -> int:
    return _checked_alignment(metadata[ALIGNMENT_KEY], path) if ALIGNMENT_KEY in metadata else ALIGNMENT


def _checked_alignment(value: object, path: Path, error: type[InputError] = FormatError) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise error(
            f"{path}: {ALIGNMENT_KEY}: found {_shown(value)}, a power of two from 8 to {MAX_ALIGNMENT} is needed"
        )
    return value


def _read_tensors(cursor: Cursor, count: int, alignment: int) -> dict[str, GgufTensor]:
    """Return the tensor table with absolute offsets, every tensor inside the file and none over another."""
    entries: dict[str, GgufTensor] = {}
    for index in range(count):
        tensor = _read_tensor(cursor, index, alignment)
        if tensor.name in entries:
            cursor.fail(f"the tensor {tensor.name!r} appears twice")
        entries[tensor.name] = tensor
    begin = cursor.position + -cursor.position % alignment
    wrong = _misplaced(entries, len(cursor.data) - begin)
    usual, other = AMBIGUOUS
    if wrong and any(tensor.type is usual for tensor in entries.values()):
        try:
            again = {name: _retyped(tensor, usual, other) for name, tensor in entries.items()}
        except FormatError:
            again = entries
        if not _misplaced(again, len(cursor.data) - begin):
            entries, wrong = again, None
    if wrong:
        raise FormatError(f"{cursor.path}: {wrong}")
    return {t.name: GgufTensor(t.name, t.type, t.shape, begin + t.offset, t.num_bytes) for t in entries.values()}


def _misplaced(entries: Mapping[str, GgufTensor], size: int) -> str | None:
    """What is wrong with the places of tensors in ``size`` bytes of data, None when nothing is."""
    end, before = 0, ""
    for tensor in sorted(entries.values(), key=lambda tensor: (tensor.offset, tensor.num_bytes)):
        if tensor.offset < end:
            return f"{tensor.name}: begins inside {before}"
        end, before = tensor.offset + tensor.num_bytes, tensor.name
        if end > size:
            return f"{tensor.name}: ends {end - size} bytes beyond the end of the file; truncated?"
    return None


def _retyped(tensor: GgufTensor, old: GgufType, new: GgufType) -> GgufTensor:
    if tensor.type is not old:
        return tensor
    return replace(tensor, type=new, num_bytes=new.num_bytes(tensor.shape))


def _read_tensor(cursor: Cursor, index: int, alignment: int) -> GgufTensor:
    """Return one entry, its offset still relative to the data."""
    name = cursor.string(MAX_NAME_BYTES, "the name of tensor", index)
    if not name:
        cursor.fail(f"the name of tensor {index} is empty")
    (dimensions,) = cursor.read(U32, "the dimensions of", name)
    if dimensions > MAX_DIMENSIONS:
        cursor.fail(f"tensor {name!r} has {dimensions} dimensions, at most {MAX_DIMENSIONS} are allowed")
    *reversed_shape, number, offset = cursor.read(_ENTRIES[dimensions], "the sizes of", name)
    shape = tuple(reversed(reversed_shape))
    kind = BY_NUMBER.get(number)
    if kind is None:
        cursor.fail(f"tensor {name!r} has the unknown type {number}")
    try:
        num_bytes = kind.num_bytes(shape)
    except FormatError as error:
        cursor.fail(f"tensor {name!r}: {error}")
    # Python's integers do not wrap, so these products are exact.
    if num_bytes > len(cursor.data) or max(shape, default=0) >= 2**63:
        cursor.fail(f"tensor {name!r} {list(shape)} needs {num_bytes} bytes, the file has {len(cursor.data)}")
    if offset % alignment or offset > len(cursor.data):
        cursor.fail(f"tensor {name!r} has the offset {offset}, a multiple of {alignment} within the file is needed")
    return GgufTensor(name, kind, shape, offset, num_bytes)


def _layout(
    path: Path,
    metadata: Mapping[str, Value | np.generic],
    tensors: Sequence[tuple[str, GgufType, tuple[int, ...]]],
    alignment: int,
) -> tuple[bytes, dict[str, GgufTensor], int]:
    """Return everything before the data, padded; the tensors with absolute offsets; the size of the file."""
    head = [MAGIC, struct.pack("<IQQ", WRITTEN_VERSION, len(tensors), len(metadata))]
    head += [pack_pair(key, value) for key, value in metadata.items()]
    sizes: dict[str, tuple[GgufType, tuple[int, ...], int, int]] = {}
    end = 0
    for name, kind, shape in tensors:
        if name in sizes or not 0 < len(name.encode("utf-8", "replace")) <= MAX_WRITTEN_NAME_BYTES:
            raise InputError(
                f"{path}: tensor name {name!r} appears twice or has not 1 to {MAX_WRITTEN_NAME_BYTES} bytes"
            )
        if len(shape) > MAX_DIMENSIONS:
            raise InputError(f"{path}: {name}: found {len(shape)} dimensions, at most {MAX_DIMENSIONS} are allowed")
        try:
            num_bytes = kind.num_bytes(shape)
        except FormatError as error:
            raise InputError(f"{path}: {name}: {error}") from error
        head += [pack_string(name), struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))]
        head += [struct.pack("<IQ", kind.number, end)]
        sizes[name] = (kind, tuple(shape), end, num_bytes)
        end += num_bytes + -num_bytes % alignment
    header = b"".join(head)
    header += b"\0" * (-len(header) % alignment)
    placed = {
        name: GgufTensor(name, kind, shape, len(header) + offset, num_bytes)
        for name, (kind, shape, offset, num_bytes) in sizes.items()
    }
    return header, placed, len(header) + end


def _shown(value: object) -> str:
    text = f"an array of {len(value)}" if isinstance(value, list | np.ndarray) else repr(value)
    return text if len(text) <= 60 else text[:60] + "..."
