"""The bytes of a GGUF file's tensors, without knowing their types: peers have types of their own.

llama-bench's own ``model_size`` is not used: some versions count a tied embedding twice.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = 8, 9
# Bytes of a metadata value by its type; strings and arrays have none.
VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def tensor_bytes(path: Path) -> int:
    """Return the size of the data part of a file. Raises: ValueError when it is no GGUF file of version 2 or 3."""
    with path.open("rb") as stream:
        if stream.read(4) != MAGIC or _number(stream, "<I") not in (2, 3):
            raise ValueError(f"{path}: found no GGUF file of version 2 or 3")
        tensors, keys = _number(stream, "<Q"), _number(stream, "<Q")
        alignment = DEFAULT_ALIGNMENT
        for _ in range(keys):
            name, kind = _string(stream), _number(stream, "<I")
            if name == b"general.alignment":
                alignment = _number(stream, "<I")
            else:
                _skip_value(stream, kind)
        for _ in range(tensors):
            _string(stream)
            dimensions = _number(stream, "<I")
            stream.seek(8 * dimensions + 4 + 8, 1)  # sizes, type, offset
        start = -(-stream.tell() // alignment) * alignment
    return path.stat().st_size - start


def _number(stream: BinaryIO, kind: str) -> int:
    return int(struct.unpack(kind, stream.read(struct.calcsize(kind)))[0])


def _string(stream: BinaryIO) -> bytes:
    return stream.read(_number(stream, "<Q"))


def _skip_value(stream: BinaryIO, kind: int) -> None:
    if kind == STRING:
        _string(stream)
    elif kind == ARRAY:
        element, count = _number(stream, "<I"), _number(stream, "<Q")
        if element in VALUE_BYTES:
            stream.seek(VALUE_BYTES[element] * count, 1)
        else:
            for _ in range(count):
                _skip_value(stream, element)
    else:
        stream.seek(VALUE_BYTES[kind], 1)
