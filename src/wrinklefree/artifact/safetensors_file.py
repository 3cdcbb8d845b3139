"""A strict reader and a streaming, 64-byte aligned writer of safetensors files.

File: 8 bytes little endian, the header's length N; N bytes of JSON ``{"__metadata__": {str: str}, name: {"dtype",
"shape", "data_offsets": [begin, end]}}``; then the data, to which the offsets are relative. The reader takes over
the rules of the reference reader: header at most 100 MB, tensors in a row without gap or overlap, the last one
ending with the file. It checks everything before it hands out a single element.

The writer pads the header with spaces so that the data starts at a multiple of 64. Gaps being illegal, it orders
tensors by the largest power of two, at most 64, that divides their size: each tensor whose size is a multiple of
64 then starts at a multiple of 64, and every other one is aligned at least to its own element type.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.json_text import parse_json
from wrinklefree.artifact.whole_file import WholeFile
from wrinklefree.errors import FormatError, InputError

ALIGNMENT = 64
MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 200_000
MAX_DIMENSIONS = 8

# Type name in the file -> the NumPy type its elements are viewed as (NumPy has no bfloat16 and no float8).
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E4M3": np.dtype(np.uint8),
    "F8_E5M2": np.dtype(np.uint8),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor. ``dtype`` is a key of `DTYPES`; ``begin`` is relative to the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int = 0

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * DTYPES[self.dtype].itemsize


class SafetensorsFile:
    """A checked safetensors file, mapped into memory; `array` gives views that cost nothing until touched."""

    def __init__(self, path: str | Path) -> None:
        """Open and check a file.

        Raises: FormatError when it is missing or breaks a rule of the format.
        """
        self.path = Path(path)
        try:
            with self.path.open("rb") as stream:
                self.num_bytes = os.fstat(stream.fileno()).st_size
                self.tensors, self.metadata, self.data_begin = _read_header(stream, self.path, self.num_bytes)
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read ({error.strerror})") from error

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of one tensor; BF16 comes as uint16, float8 as uint8.

        Raises: FormatError when the file has no such tensor.
        """
        if name not in self.tensors:
            raise FormatError(f"{self.path}: has no tensor {name!r}")
        info = self.tensors[name]
        flat = np.frombuffer(self._map, DTYPES[info.dtype], info.num_elements, self.data_begin + info.begin)
        return flat.reshape(info.shape)


class SafetensorsWriter(WholeFile):
    """Writes one file tensor by tensor, in any order, and gives it its name only when every tensor is there.

    Use it as a context manager; when the block raises, nothing is left. The whole size is reserved at the start, so
    that a full disk shows before the work, not after it.
    """

    def __init__(
        self, path: str | Path, tensors: Iterable[TensorInfo], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Reserve the file for these tensors (their ``begin`` is ignored and assigned).

        Raises: InputError when a name appears twice or there is no space.
        """
        self.tensors = layout(tensors)
        header = _header(self.tensors.values(), metadata or {})
        self._data_begin = len(header)
        size = len(header) + sum(info.num_bytes for info in self.tensors.values())
        super().__init__(Path(path), header, size, self.tensors)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write one tensor; its NumPy type and shape must be the declared ones (BF16 as uint16).

        Raises: InputError when it is unknown, written already, or of another type or shape.
        """
        info = self.tensors.get(name)
        if info is None or not self.is_missing(name):
            raise InputError(f"{self.path}: tensor {name!r} was not announced or is written already")
        found = (array.dtype.newbyteorder("<"), array.shape)
        if found != (DTYPES[info.dtype].newbyteorder("<"), info.shape):
            raise InputError(
                f"{self.path}: {name}: found {array.dtype} {array.shape}, announced {info.dtype} {info.shape}"
            )
        stored = np.ascontiguousarray(array, DTYPES[info.dtype]).reshape(-1).view(np.uint8)
        self.put(name, self._data_begin + info.begin, stored.data)


def write_safetensors(
    path: str | Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays held in memory. Raises: InputError for an unsupported type or when there is no space."""
    infos = [TensorInfo(name, dtype_name(array.dtype), array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, infos, metadata) as writer:
        for name, array in arrays.items():
            writer.write(name, array)


def dtype_name(dtype: np.dtype[Any]) -> str:
    """Return the file's name of a NumPy type. Raises: InputError for a type without one."""
    for name, candidate in DTYPES.items():
        if candidate == dtype and name not in ("F8_E4M3", "F8_E5M2", "BF16"):
            return name
    raise InputError(f"safetensors: no type for NumPy's {dtype}")


def layout(tensors: Iterable[TensorInfo]) -> dict[str, TensorInfo]:
    """Return tensors in file order with their offsets: by decreasing alignment of size, then as given.

    Raises: InputError when a name appears twice.
    """
    placed: dict[str, TensorInfo] = {}
    begin = 0
    for info in sorted(tensors, key=lambda info: -_alignment(info.num_bytes)):
        if info.name in placed:
            raise InputError(f"safetensors: the tensor name {info.name!r} appears twice")
        placed[info.name] = TensorInfo(info.name, info.dtype, tuple(info.shape), begin)
        begin += info.num_bytes
    return placed


def _alignment(num_bytes: int) -> int:
    return ALIGNMENT if num_bytes == 0 else min(ALIGNMENT, num_bytes & -num_bytes)


def _header(tensors: Iterable[TensorInfo], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for info in tensors:
        offsets = [info.begin, info.begin + info.num_bytes]
        entries[info.name] = {"dtype": info.dtype, "shape": list(info.shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text


def _read_header(stream: BinaryIO, path: Path, file_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """Return the tensors in file order, the metadata, and where the data begins."""
    if file_bytes < 10:
        raise FormatError(f"{path}: found {file_bytes} bytes, a safetensors file has at least 10; truncated?")
    (length,) = struct.unpack("<Q", stream.read(8))
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise FormatError(
            f"{path}: header length {length} exceeds the file ({file_bytes} bytes) or the limit of "
            f"{MAX_HEADER_BYTES}; not a safetensors file, or truncated"
        )
    header = parse_json(stream.read(length), f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    if len(header) > MAX_TENSORS:
        raise FormatError(f"{path}: found {len(header)} tensors, at most {MAX_TENSORS} are allowed")
    tensors = sorted((_entry(path, name, entry) for name, entry in header.items()), key=_position)
    end = 0
    for info in tensors:
        if info.begin != end:
            raise FormatError(f"{path}: {info.name}: begins at {info.begin}, the one before ends at {end}")
        end += info.num_bytes
    if end != file_bytes - 8 - length:
        raise FormatError(f"{path}: the tensors need {end} bytes, the file holds {file_bytes - 8 - length}; truncated?")
    return {info.name: info for info in tensors}, metadata, 8 + length


def _position(info: TensorInfo) -> tuple[int, int]:
    return info.begin, info.num_bytes


def _entry(path: Path, name: str, entry: Any) -> TensorInfo:
    """Return one checked entry of a header. Python's integers do not wrap, so products are exact."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: {name}: needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{path}: {name}: unknown dtype {dtype!r} (allowed: {', '.join(DTYPES)})")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{path}: {name}: shape {shape!r} is no list of at most {MAX_DIMENSIONS} sizes")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{path}: {name}: data_offsets {offsets!r} are no begin and end")
    info = TensorInfo(name, dtype, tuple(shape), offsets[0])
    if info.num_bytes != offsets[1] - offsets[0]:
        raise FormatError(
            f"{path}: {name}: {dtype} {shape} needs {info.num_bytes} bytes, data_offsets hold {offsets[1] - offsets[0]}"
        )
    return info


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**48 for item in value)
