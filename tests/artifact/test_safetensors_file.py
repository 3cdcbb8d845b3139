"""Our safetensors reader and writer against the `safetensors` library, and against damaged files.

Reference: what the library reads from our file and what we read from its file must be equal; what we refuse must be
one FormatError, whatever the bytes.
"""

from __future__ import annotations

import json
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.safetensors_file import (
    SafetensorsFile,
    SafetensorsWriter,
    TensorInfo,
    write_safetensors,
)
from wrinklefree.errors import FormatError, InputError

RNG = np.random.default_rng(0)
ARRAYS: dict[str, np.ndarray[Any, Any]] = {
    "scalar": np.array(1.5, np.float32),
    "odd": RNG.integers(0, 255, (3, 7)).astype(np.uint8),
    "half": RNG.standard_normal((5, 3)).astype(np.float16),
    "wide": RNG.standard_normal((16, 16)).astype(np.float32),
    "codes": RNG.integers(0, 255, (2, 3, 64)).astype(np.uint8),
    "empty": np.zeros((0, 4), np.int8),
    "long": np.arange(9, dtype=np.int64),
}


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS, {"format": "pt"})
    theirs = safetensors.numpy.load_file(path)
    assert theirs.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert theirs[name].dtype == array.dtype
        np.testing.assert_array_equal(theirs[name], array)


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, {"k": "v"})
    ours = SafetensorsFile(path)
    assert ours.metadata == {"k": "v"} and ours.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(ours.array(name), array)
        assert not ours.array(name).flags.writeable


def test_alignment(tmp_path: Path) -> None:
    """Sizes that are multiples of 64 start at multiples of 64; each tensor is aligned to its element."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, ARRAYS)
    ours = SafetensorsFile(path)
    assert ours.data_begin % 64 == 0
    for info in ours.tensors.values():
        assert info.begin % (64 if info.num_bytes % 64 == 0 else ARRAYS[info.name].itemsize) == 0


def test_bfloat16_is_viewed_as_uint16(tmp_path: Path) -> None:
    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    with SafetensorsWriter(tmp_path / "b", [TensorInfo("x", "BF16", (1, 2))]) as writer:
        writer.write("x", bits)
    read = SafetensorsFile(tmp_path / "b")
    assert read.tensors["x"].dtype == "BF16"
    np.testing.assert_array_equal(read.array("x"), bits)


def test_writer_refuses_and_leaves_nothing(tmp_path: Path) -> None:
    info = TensorInfo("x", "F32", (2,))
    good = np.zeros(2, np.float32)
    cases: list[tuple[str, list[tuple[str, Any]]]] = [
        ("never written", []),
        ("announced", [("y", good)]),
        ("announced F32", [("x", np.zeros(3, np.float32))]),
        ("announced F32", [("x", np.zeros(2, np.float64))]),
        ("written already", [("x", good), ("x", good)]),
    ]
    for message, writes in cases:
        with (
            pytest.raises(InputError, match=message),
            SafetensorsWriter(tmp_path / "out", [info]) as writer,
        ):
            for name, array in writes:
                writer.write(name, array)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="appears twice"):
        SafetensorsWriter(tmp_path / "out", [info, info])
    with pytest.raises(InputError, match="cannot be written"):
        SafetensorsWriter(tmp_path / "no" / "out", [info])


def test_no_space_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    """The real operating system refuses: a file-size limit set in a process of its own."""
    program = f"""
import resource, numpy as np
from pathlib import Path
from wrinklefree.artifact.safetensors_file import write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, {resource.RLIM_INFINITY}))
try:
    write_safetensors({str(tmp_path / "big")!r}, {{"x": np.zeros(4096, np.float32)}})
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("InputError") and "no space left" in done.stdout
    assert list(tmp_path.iterdir()) == []


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


_DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "nine bytes": (b"\0" * 9, "truncated"),
    "header longer than file": (_file({}, length=1 << 40), "header length"),
    "header of all ones": (b"\xff" * 64, "header length"),
    "not json": (_file(b"not json at all"), "JSON"),
    "not utf-8": (_file(b'{"\xff": 1}   '), "not UTF-8"),
    "a list": (_file([1, 2, 3, 4]), "an object is needed"),
    "deep": (_file(b"[" * 200_000), "JSON"),
    "duplicate": (_file(b'{"a": 1, "a": 2}'), "twice"),
    "metadata number": (_file({"__metadata__": {"a": 1}}), "__metadata__"),
    "entry no object": (_file({"a": [1]}), "exactly dtype"),
    "entry surplus": (_file({"a": {**_entry(), "x": 1}}, b"0123"), "exactly dtype"),
    "dtype unknown": (_file({"a": _entry("F4")}, b"0123"), "unknown dtype"),
    "dtype list": (_file({"a": _entry([])}, b"0123"), "unknown dtype"),
    "negative size": (_file({"a": _entry(shape=[-1])}, b"0123"), "no list of at most"),
    "float size": (_file({"a": _entry(shape=[1.0])}, b"0123"), "no list of at most"),
    "bool size": (_file({"a": _entry(shape=[True])}, b"0123"), "no list of at most"),
    "nine dimensions": (_file({"a": _entry(shape=[1] * 9)}, b"0123"), "no list of at most"),
    "overflowing product": (_file({"a": _entry(shape=[2**47, 2**47, 4])}, b"0123"), "needs"),
    "offsets swapped": (_file({"a": _entry(offsets=[4, 0])}, b"0123"), "data_offsets"),
    "offsets three": (_file({"a": _entry(offsets=[0, 4, 4])}, b"0123"), "data_offsets"),
    "offsets too small": (_file({"a": _entry(offsets=[0, 2])}, b"01"), "needs 4 bytes"),
    "gap": (_file({"a": _entry(), "b": _entry(offsets=[8, 12])}, b"0" * 12), "begins at 8"),
    "gap at start": (_file({"a": _entry(offsets=[4, 8])}, b"0" * 8), "begins at 4"),
    "overlap": (_file({"a": _entry(), "b": _entry(offsets=[2, 6])}, b"0" * 6), "begins at 2"),
    "truncated data": (_file({"a": _entry()}, b"012"), "truncated"),
    "trailing data": (_file({"a": _entry()}, b"01234"), "truncated"),
}


@pytest.mark.parametrize("name", _DAMAGED)
def test_damaged_files_are_refused(tmp_path: Path, name: str) -> None:
    data, message = _DAMAGED[name]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        SafetensorsFile(tmp_path / "x")


def test_missing_file_and_tensor(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="cannot be read"):
        SafetensorsFile(tmp_path / "none")
    write_safetensors(tmp_path / "x", {"a": np.zeros(1, np.float32)})
    with pytest.raises(FormatError, match="has no tensor 'b'"):
        SafetensorsFile(tmp_path / "x").array("b")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any damage either leaves a consistent file, whose views lie inside it, or is a FormatError."""
    path = tmp_path_factory.mktemp("flip") / "x"
    write_safetensors(path, ARRAYS)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, 700))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    try:
        ours = SafetensorsFile(path)
    except FormatError:
        return
    assert sum(ours.array(name).nbytes for name in ours.tensors) == ours.num_bytes - ours.data_begin
