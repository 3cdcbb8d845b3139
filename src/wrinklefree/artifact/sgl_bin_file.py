"""The ``.bin`` file of early converters: one file with a config.json and per-tensor ternary layers. Read and written.

Little endian, nothing aligned: ``SGLBITNT``; u32 version 1; u32 length and bytes of the JSON that config.json held;
u32 count of tensors; for each tensor u32 length and bytes of its name, u32 type (0 packed bytes, 1 float32, 2 float16,
3 bfloat16), u32 count of dimensions and that many u32, u32 whether it has a scale, the scale float32, u64 length and
bytes of its data. The name is Hugging Face's.

Two dialects: one converter wrote the four bytes of the scale always, the other only where there is one. Nothing says
which; a file parses to its last byte in one of them.

A ternary layer ``[O, I]`` is packed bytes ``[O, K / 4]``, K being I rounded up to 128 with zeros. In every 128 columns
bits 7-6 of byte j hold column j, bits 5-4 column j + 32, 3-2 j + 64, 1-0 j + 96, each as ternary value + 1: GGUF's I2_S
in its order of x86, row by row, with the scale beside it.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.ternary_types import decode, encode
from wrinklefree.artifact.gguf.types import TYPES
from wrinklefree.artifact.huggingface.floats import FLOAT_TYPES, widen
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.errors import FormatError

MAGIC = b"SGLBITNT"
VERSION = 1
COLUMNS = 128
# By number in the file, under safetensors' names.
TYPE_NAMES = ("U8", "F32", "F16", "BF16")
_ITEM_BYTES = {"U8": 1, "F32": 4, "F16": 2, "BF16": 2}
_NUMPY: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
MAX_TENSORS = 65_536
MAX_NAME_BYTES = 1024
MAX_CONFIG_BYTES = 16 * 1024 * 1024
MAX_DIMENSIONS = 8
# What I2_S has behind a tensor: its scale, here 1, and padding.
_TAIL_BYTES = TYPES["I2_S"].tail_bytes
_ONE = np.frombuffer(struct.pack("<f", 1.0).ljust(_TAIL_BYTES, b"\0"), np.uint8)
# The four bytes of a scale: always there, or only where the tensor has one
Dialect = Literal["always", "present"]
DIALECTS: tuple[Dialect, ...] = ("always", "present")


@dataclass(frozen=True)
class BinTensor:
    """One tensor of the table; ``begin`` is where its data stands in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: np.float32 | None
    begin: int
    num_bytes: int


class BinFile:
    """A checked ``.bin`` file, mapped into memory; `array` gives views that cost nothing until touched."""

    def __init__(self, path: str | Path) -> None:
        """Open and check.

        Raises: FormatError when it is missing, breaks a rule of the format, or parses in neither dialect or in both.
        """
        self.path = Path(path)
        try:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise FormatError(f"{self.path}: cannot be read ({error})") from error
        reader = _Reader(self._map)
        try:
            config, count = _header(reader)
            self.config = parse_json(config, f"{self.path}: config")
            found = _in_one_dialect(self._map, reader.position, count)
        except _Wrong as error:
            raise FormatError(f"{self.path}: {error}") from error
        self.dialect, tensors = found
        self.tensors: Mapping[str, BinTensor] = {tensor.name: tensor for tensor in tensors}
        if len(self.tensors) != len(tensors):
            raise FormatError(f"{self.path}: a tensor name appears twice")

    def place(self, name: str) -> str:
        """Return where a tensor stands, for messages."""
        return f"{self.path}: {name}"

    def array(self, name: str) -> NDArray[Any]:
        """Return a read-only view of a tensor (BF16 as uint16). Raises: FormatError when there is none."""
        if name not in self.tensors:
            raise FormatError(f"{self.path}: the tensor {name} is missing")
        tensor = self.tensors[name]
        flat = np.frombuffer(self._map, _NUMPY[tensor.dtype], math.prod(tensor.shape), tensor.begin)
        return flat.reshape(tensor.shape)

    def floats(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return a float tensor of this shape as float32. Raises: FormatError when it is anything else."""
        stored = self.array(name)
        dtype = self.tensors[name].dtype
        if dtype not in FLOAT_TYPES or stored.shape != shape:
            raise FormatError(
                f"{self.place(name)}: found {dtype} {list(stored.shape)}, floats {list(shape)} are needed"
            )
        values = widen(stored, dtype)
        if not np.isfinite(values).all():
            raise FormatError(f"{self.place(name)}: holds a value that is no finite number")
        return values

    def check_ternary(self, name: str, rows: int, columns: int) -> None:
        """Raise FormatError when a tensor is not packed, or not of these sizes."""
        found = self.tensors[name]
        if found.dtype != "U8" or found.shape != (rows, padded(columns) // 4):
            raise FormatError(
                f"{self.place(name)}: found {found.dtype} {list(found.shape)}, a ternary matrix {rows} x {columns} is "
                f"U8 {[rows, padded(columns) // 4]}"
            )

    def ternary(self, name: str, rows: int, columns: int) -> NDArray[np.int8]:
        """Return the codes int8 ``[O, I]`` of a packed tensor. Raises: FormatError when it is none of these sizes."""
        self.check_ternary(name, rows, columns)
        body = np.concatenate([self.array(name).reshape(-1), _ONE])
        try:
            codes, _ = decode(TYPES["I2_S"], body, (rows, padded(columns)))
        except FormatError as error:
            raise FormatError(f"{self.place(name)}: {error}") from error
        if codes[:, columns:].any():
            raise FormatError(f"{self.place(name)}: holds weights beyond its {columns} columns; the file is damaged")
        return np.ascontiguousarray(codes[:, :columns])


def padded(columns: int) -> int:
    """Return the columns that a packed row holds."""
    return -(-columns // COLUMNS) * COLUMNS


def pack_planes(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return the packed bytes ``[O, K / 4]`` of ternary values ``[O, I]``."""
    rows, columns = codes.shape
    wide = np.zeros((rows, padded(columns)), np.int8)
    wide[:, :columns] = codes
    return encode(TYPES["I2_S"], wide, np.ones(1, np.float32))[:-_TAIL_BYTES].reshape(rows, -1)


def is_bin(path: str | Path) -> bool:
    """Return whether a path is a file that starts with the format's magic."""
    try:
        with Path(path).open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


class _Wrong(Exception):
    """Why the bytes are no file of a dialect; ``at`` is how far it was one."""

    def __init__(self, what: str, at: int) -> None:
        super().__init__(what)
        self.at = at


class _Reader:
    """Numbers and bytes one after the other; nothing beyond the end is believed."""

    def __init__(self, data: mmap.mmap, position: int = 0) -> None:
        self.data, self.position = data, position

    def number(self, form: str = "<I") -> Any:
        size = struct.calcsize(form)
        return struct.unpack(form, self.take(size))[0]

    def take(self, count: int) -> bytes:
        begin = self.skip(count)
        return self.data[begin : begin + count]

    def skip(self, count: int) -> int:
        begin = self.position
        if count > len(self.data) - begin:
            raise _Wrong(f"ends at byte {len(self.data)}, where {count} more from {begin} on are announced", begin)
        self.position = begin + count
        return begin

    def limited(self, most: int, what: str) -> int:
        found: int = self.number()
        if found > most:
            raise _Wrong(f"found {found} {what} at byte {self.position - 4}, at most {most} are allowed", self.position)
        return found


def _header(reader: _Reader) -> tuple[bytes, int]:
    """The JSON and the count of tensors."""
    if reader.take(len(MAGIC)) != MAGIC:
        raise _Wrong(f"does not begin with {MAGIC.decode()}", 0)
    version = reader.number()
    if version != VERSION:
        raise _Wrong(f"found version {version}, {VERSION} is known", reader.position)
    config = reader.take(reader.limited(MAX_CONFIG_BYTES, "bytes of config"))
    return config, reader.limited(MAX_TENSORS, "tensors")


def _in_one_dialect(data: mmap.mmap, begin: int, count: int) -> tuple[Dialect, list[BinTensor]]:
    found: dict[Dialect, list[BinTensor]] = {}
    wrong: list[_Wrong] = []
    for dialect in DIALECTS:
        try:
            found[dialect] = _table(_Reader(data, begin), count, dialect == "always")
        except _Wrong as error:
            wrong.append(error)
    if not found:
        raise max(wrong, key=lambda error: error.at)
    first, *others = found.items()
    if others and others[0][1] != first[1]:
        raise _Wrong("can be read in both dialects, with different tensors; convert the model again", begin)
    return first


def _table(reader: _Reader, count: int, always: bool) -> list[BinTensor]:
    tensors = [_tensor(reader, always) for _ in range(count)]
    if reader.position != len(reader.data):
        left = len(reader.data) - reader.position
        raise _Wrong(f"holds {left} bytes more than its {count} tensors", reader.position)
    return tensors


def _tensor(reader: _Reader, always: bool) -> BinTensor:
    raw = reader.take(reader.limited(MAX_NAME_BYTES, "bytes of a name"))
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _Wrong(f"has a tensor name that is not UTF-8 before byte {reader.position}", reader.position) from None
    number = reader.limited(len(TYPE_NAMES) - 1, "as the number of a type")
    shape = tuple(reader.number() for _ in range(reader.limited(MAX_DIMENSIONS, "dimensions")))
    flag = reader.limited(1, "as whether there is a scale")
    scale = np.float32(reader.number("<f")) if flag or always else None
    dtype = TYPE_NAMES[number]
    if (dtype == "U8") != bool(flag):
        raise _Wrong(f"{name!r:.80}: {dtype} {'with' if flag else 'without'} a scale is no tensor", reader.position)
    num_bytes: int = reader.number("<Q")
    if num_bytes != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _Wrong(f"{name!r:.80}: {dtype} {list(shape)} does not have {num_bytes} bytes", reader.position)
    begin = reader.skip(num_bytes)
    if flag and scale is not None and not (np.isfinite(scale) and scale != 0):
        raise _Wrong(f"{name!r:.80}: found the scale {scale}, a finite number other than 0 is needed", reader.position)
    return BinTensor(name, dtype, shape, scale if flag else None, begin, num_bytes)
