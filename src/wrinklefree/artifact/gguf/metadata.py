"""The keys and values at the head of a GGUF file: from bytes, checked, and to bytes.

A key is a string and a value one of thirteen types; a string is its length as uint64 and its UTF-8 bytes; an array is
its elements' type as uint32, their count as uint64, and the elements. Everything is little endian.

What a file claims is compared with how many bytes it has left before anything is made of it. Arrays of numbers stay
where they are in the file, as NumPy views. Arrays of strings are walked once when the file is opened and become lists
when they are asked for; how much memory all strings of a file may take together is limited, because one byte in
the file can cost many in Python.

Source: the GGUF specification (docs/gguf.md of ggml) and ggml/src/gguf.cpp of llama.cpp.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from wrinklefree.errors import FormatError, InputError

Value = str | int | float | bool | list[str] | NDArray[Any]

BOOL, STRING, ARRAY = 7, 8, 9
# The number of a value's type -> what it is called and how it is stored.
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_OF_DTYPE = {dtype: number for number, dtype in NUMBERS.items()}
MAX_KEY_BYTES = 65_535
MAX_STRING_BYTES = 16 * 1024 * 1024
# In all arrays of a file together; the largest vocabularies with their merges have eight hundred thousand.
MAX_STRINGS = 1024 * 1024
# What a file's strings may take in memory beyond the size of the file.
_MAX_EXTRA_BYTES = 52 * 1024 * 1024
# The most that one byte of UTF-8 costs in a Python string, what a string costs besides, and its place in a list (which
# may be an eighth longer than its content).
_WIDEST, _STRING_COST, _PLACE_COST = 4, 96, 9
_EMPTY_COST = sys.getsizeof("")
_PIECE_BYTES = 1 << 20


U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
_ARRAY_HEAD = struct.Struct("<IQ")


class Cursor:
    """A place in the bytes of a file that moves forward and never beyond the end."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.position = data, path, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def skip(self, size: int, what: str, index: int | str) -> int:
        """Return where the next ``size`` bytes begin, and move behind them. Raises: FormatError naming the thing."""
        begin = self.position
        if size > len(self.data) - begin:
            self.fail(f"{what} {index!r} needs {size} bytes, {self.left} are left; truncated?")
        self.position = begin + size
        return begin

    def read(self, format_: struct.Struct, what: str, index: int | str) -> tuple[int, ...]:
        """Return integers. Raises: FormatError as `skip` does."""
        return format_.unpack_from(self.data, self.skip(format_.size, what, index))

    def span(self, most: int, what: str, index: int | str) -> memoryview:
        """Return the bytes of a string, at most ``most``. Raises: FormatError naming the thing."""
        (size,) = self.read(U64, what, index)
        if size > most:
            self.fail(f"{what} {index!r} has a length of {size} bytes, at most {most} are allowed")
        begin = self.skip(size, what, index)
        return self.data[begin : begin + size]

    def string(self, most: int, what: str, index: int | str) -> str:
        """Return a string. Raises: FormatError as `span` does, or when it is not UTF-8."""
        return self.decoded(self.span(most, what, index), what, index)

    def decoded(self, span: memoryview, what: str, index: int | str) -> str:
        """Return bytes in front of here as a string. Raises: FormatError when they are not UTF-8."""
        try:
            return str(span, "utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} {index!r} is not UTF-8, {error.reason} at byte {error.start} of it")

    def fail(self, message: str) -> NoReturn:
        raise FormatError(f"{self.path}: at byte {self.position}: {message}")


@dataclass(frozen=True)
class _StringArray:
    """Where an array of strings stands: its first length's place, its number of strings, and its end."""

    begin: int
    count: int
    end: int


class Metadata(Mapping[str, Value]):
    """The keys of a file and their values; arrays of strings become lists when they are first asked for."""

    def __init__(self, cursor: Cursor, count: int) -> None:
        """Read ``count`` keys and values at the cursor. Raises: FormatError naming file, place and key."""
        self._cursor = cursor
        self._values: dict[str, Value | _StringArray] = {}
        self._strings_left = MAX_STRINGS
        self._memory_left = len(cursor.data) + _MAX_EXTRA_BYTES
        for index in range(count):
            key = cursor.string(MAX_KEY_BYTES, "key", index)
            if not key:
                cursor.fail(f"key {index} is empty")
            if key in self._values:
                cursor.fail(f"the key {key!r} appears twice")
            self._account(key, key)
            self._values[key] = self._read(key)

    def __getitem__(self, key: str) -> Value:
        value = self._values[key]
        if isinstance(value, _StringArray):
            value = self._values[key] = self._list(key, value)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def length(self, key: str) -> int | None:
        """Return how many elements an array has, without making anything of it; None for what is no array."""
        value = self._values[key]
        if isinstance(value, _StringArray):
            return value.count
        return len(value) if isinstance(value, list | np.ndarray) else None

    def _read(self, key: str) -> Value | _StringArray:
        cursor = self._cursor
        (number,) = cursor.read(U32, "the type of", key)
        if number == STRING:
            span = cursor.span(MAX_STRING_BYTES, "the value of", key)
            if _most_memory(span, self._memory_left) > self._memory_left:
                self._too_much(key)
            text = cursor.decoded(span, "the value of", key)
            self._account(key, text)
            return text
        if number == ARRAY:
            return self._read_array(key)
        if number not in NUMBERS:
            cursor.fail(f"the value of {key!r} has the unknown type {number}")
        scalar: int | float | bool = self._numbers(key, number, 1)[0].item()
        return scalar

    def _read_array(self, key: str) -> NDArray[Any] | _StringArray:
        cursor = self._cursor
        number, count = cursor.read(_ARRAY_HEAD, "the array", key)
        if number == ARRAY:
            cursor.fail(f"{key!r} is an array of arrays, which no reader of models takes")
        if number == STRING:
            return self._walk(key, count)
        if number not in NUMBERS:
            cursor.fail(f"{key!r} is an array of the unknown type {number}")
        return self._numbers(key, number, count)

    def _numbers(self, key: str, number: int, count: int) -> NDArray[Any]:
        cursor, dtype = self._cursor, NUMBERS[number]
        begin = cursor.skip(count * dtype.itemsize, "the value of", key)
        if number != BOOL:
            return np.frombuffer(cursor.data, dtype, count, begin)
        bits = np.frombuffer(cursor.data, np.uint8, count, begin)
        if count and int(bits.max()) > 1:
            cursor.fail(f"{key!r} holds a truth value that is neither 0 nor 1")
        return bits.view(np.bool_)

    def _walk(self, key: str, count: int) -> _StringArray:
        """Check that ``count`` strings fit into what is left, and move behind them."""
        cursor = self._cursor
        if count > min(cursor.left // 8, self._strings_left):
            cursor.fail(
                f"{key!r} claims {count} strings; {cursor.left} bytes are left, and {self._strings_left} more strings "
                "are allowed; truncated?"
            )
        self._strings_left -= count
        begin = position = cursor.position
        last, data, read_size = len(cursor.data) - 8, cursor.data, U64.unpack_from
        for _ in range(count):
            if position > last:
                cursor.position = min(position, len(data))
                cursor.fail(f"the array {key!r} is cut off; truncated?")
            position += 8 + read_size(data, position)[0]
        if position > len(data):
            cursor.fail(f"the array {key!r} reaches beyond the end of the file; truncated?")
        cursor.position = position
        return _StringArray(begin, count, position)

    def _list(self, key: str, array: _StringArray) -> list[str]:
        data, position, read_size = self._cursor.data, array.begin, U64.unpack_from
        # Most files are far from the limit; near it, every string is counted before the next one is made.
        left = self._memory_left - (_PLACE_COST + _EMPTY_COST) * array.count
        counting = _WIDEST * (array.end - array.begin) + _STRING_COST * array.count > self._memory_left
        if left < 0:
            self._too_much(key)
        texts: list[str] = []
        try:
            for _ in range(array.count):
                begin = position + 8
                position = begin + read_size(data, position)[0]
                span = data[begin:position]
                if counting and _most_memory(span, left) > left:
                    self._too_much(key)
                text = str(span, "utf-8")
                texts.append(text)
                if counting:
                    left -= sys.getsizeof(text) - _EMPTY_COST
                    if left < 0:
                        self._too_much(key)
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self._cursor.path}: at byte {begin}: {key!r}: string {len(texts)} is not UTF-8 ({error.reason})"
            ) from error
        self._memory_left -= sum(map(sys.getsizeof, texts)) + _PLACE_COST * len(texts)
        return texts

    def _account(self, key: str, text: str) -> None:
        self._memory_left -= sys.getsizeof(text) + _PLACE_COST
        if self._memory_left < 0:
            self._too_much(key)

    def _too_much(self, key: str) -> NoReturn:
        raise FormatError(f"{self._cursor.path}: {key!r}: the strings of this file take too much memory")


def _most_memory(span: memoryview, left: int) -> int:
    """What UTF-8 may take as a Python string; looked at closely only when the first guess is more than is ``left``."""
    guess = _WIDEST * len(span) + _STRING_COST
    if guess <= left:
        return guess
    # A character takes as many bytes as the widest one needs, which its first byte in UTF-8 tells.
    found = np.frombuffer(span, np.uint8)
    highest = int(found.max(initial=0))
    width = 4 if highest >= 0xF0 else 2 if highest >= 0xC4 else 1
    pieces = (found[begin : begin + _PIECE_BYTES] for begin in range(0, found.size, _PIECE_BYTES))
    return width * sum(int(np.count_nonzero(piece & 0xC0 != 0x80)) for piece in pieces) + _STRING_COST


def pack_string(text: str) -> bytes:
    """Return length and UTF-8 bytes. Raises: InputError for a lone surrogate."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"GGUF: {text[:40]!r} cannot be written as UTF-8") from error
    return struct.pack("<Q", len(raw)) + raw


def pack_pair(key: str, value: Value | np.generic) -> bytes:
    """Return the bytes of a key with its value.

    Python's numbers take the types that readers expect: integers uint32 where they fit, then int32, uint64, int64;
    fractions float32; NumPy's scalars and arrays keep their types.

    Raises: InputError for a key or value that the format cannot hold.
    """
    if not key or len(key.encode("utf-8", "replace")) > MAX_KEY_BYTES:
        raise InputError(f"GGUF: a key of {len(key)} characters, 1 to {MAX_KEY_BYTES} bytes are allowed")
    return pack_string(key) + _pack_value(key, value)


def _pack_value(key: str, value: Value | np.generic) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + pack_string(value)
    if isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise InputError(f"GGUF: {key}: a list holds strings only; give numbers as a NumPy array")
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(pack_string, value))
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, np.generic | np.ndarray):
        return _pack_numpy(key, value)
    if isinstance(value, float):
        return _pack_numpy(key, _float32(key, value))
    if isinstance(value, int):
        return _pack_numpy(key, _integer(key, value))
    raise InputError(f"GGUF: {key}: a value of type {type(value).__name__} cannot be written")


def _pack_numpy(key: str, value: np.generic | NDArray[Any]) -> bytes:
    number = _OF_DTYPE.get(value.dtype.newbyteorder("<"))
    if number is None or value.ndim > 1:
        raise InputError(f"GGUF: {key}: {value.dtype} with {value.ndim} dimensions cannot be written")
    raw = np.ascontiguousarray(value, NUMBERS[number]).tobytes()
    if value.ndim == 0:
        return struct.pack("<I", number) + raw
    return struct.pack("<IIQ", ARRAY, number, value.size) + raw


def _float32(key: str, value: float) -> np.float32:
    with np.errstate(over="ignore"):
        rounded = np.float32(value)
    if np.isfinite(value) and not np.isfinite(rounded):
        raise InputError(f"GGUF: {key}: {value} is beyond float32; give it as np.float64")
    return rounded


def _integer(key: str, value: int) -> np.generic:
    for kind in (np.uint32, np.int32, np.uint64, np.int64):
        if np.iinfo(kind).min <= value <= np.iinfo(kind).max:
            return kind(value)
    raise InputError(f"GGUF: {key}: {value} does not fit into 64 bits")
