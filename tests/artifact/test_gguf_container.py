"""Reading and writing the container: against the gguf package both ways, and against every kind of damage.

The damaged files are put together by hand, field by field, each wrong in one place. Whatever is wrong, one kind of
error says where; what is right is read as the package reads it, and our bytes are the package's bytes.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.gguf import metadata as metadata_module
from wrinklefree.artifact.gguf.container import GgufFile, GgufWriter, is_gguf, read_gguf
from wrinklefree.artifact.gguf.metadata import NUMBERS
from wrinklefree.artifact.gguf.types import TYPES, gguf_type
from wrinklefree.errors import FormatError, InputError

TOKENS = ["", "a", "é", "\U0001f600", " x\n"]


def _text(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _array(kind: int, count: int, value: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + value


def _entry(name: str | bytes = "t", dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def _file(
    keys: tuple[bytes, ...] = (),
    entries: tuple[bytes, ...] = (),
    data: int = 0,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    magic: bytes = b"GGUF",
    alignment: int = 32,
) -> bytes:
    tensors, pairs = counts or (len(entries), len(keys))
    head = magic + struct.pack("<IQQ", version, tensors, pairs) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + bytes(data)


def _parse(content: bytes) -> GgufFile:
    read = GgufFile(memoryview(content), Path("x.gguf"))
    for key in read.metadata:
        assert read.metadata[key] is not None
    return read


ONE = _pair("a", 4, struct.pack("<I", 7))
# What is wrong -> the file, and what the message says.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a GGUF"),
    "magic": (_file(magic=b"GGML"), "starts with"),
    "no version": (b"GGUF\3", "needs 4 bytes"),
    "version 0": (_file(version=0), "version 0"),
    "version 1": (_file(version=1), "version 1,"),
    "version of the future": (_file(version=4), "version 4,"),
    "big endian": (_file(version=3 << 24), "big endian"),
    "no counts": (_file()[:20], "needs 16 bytes"),
    "tensors beyond the file": (_file(counts=(2, 0)), "claims 2 tensors"),
    "tensors beyond all": (_file(counts=(2**64 - 1, 0)), "tensors; the limit is"),
    "keys beyond the file": (_file((ONE,), counts=(0, 3)), "claims 3 keys"),
    "keys beyond all": (_file(counts=(0, 2**63)), "keys; the limit is"),
    "key cut off": (_file((struct.pack("<Q", 99) + b"abcdefg",)), "key 0 needs 99 bytes"),
    "key as long as memory": (_file((struct.pack("<Q", 2**64 - 1) + b"abcdefgh",)), "at most 65535"),
    "key empty": (_file((_pair("", 4, bytes(4)),)), "key 0 is empty"),
    "key twice": (_file((ONE, ONE)), "appears twice"),
    "key not UTF-8": (_file((_pair(b"\xff", 4, bytes(4)),)), "not UTF-8"),
    "value type": (_file((_pair("a", 13, bytes(8)),)), "unknown type 13"),
    "value cut off": (_file((_pair("a", 10, bytes(1)),), alignment=1), "needs 8 bytes"),
    "string not UTF-8": (_file((_pair("a", 8, _text(b"\xc3")),)), "not UTF-8"),
    "string beyond the file": (_file((_pair("a", 8, struct.pack("<Q", 999)),)), "needs 999 bytes"),
    "string beyond all": (_file((_pair("a", 8, struct.pack("<Q", 2**63)),)), "at most 16777216"),
    "truth value of 2": (_file((_pair("a", 7, b"\2"),)), "neither 0 nor 1"),
    "truth values of 2": (_file((_pair("a", 9, _array(7, 3, b"\0\1\2")),)), "neither 0 nor 1"),
    "array beyond the file": (_file((_pair("a", 9, _array(5, 100)),)), "needs 400 bytes"),
    "array wraps": (_file((_pair("a", 9, _array(12, 2**61 + 1)),)), "needs 18446744073709551624 bytes"),
    "array of nothing known": (_file((_pair("a", 9, _array(99, 1)),)), "unknown type 99"),
    "array of arrays": (_file((_pair("a", 9, _array(9, 1, _array(4, 0))),)), "array of arrays"),
    "strings beyond the file": (_file((_pair("a", 9, _array(8, 100)),)), "claims 100 strings"),
    "strings beyond all": (_file((_pair("a", 9, _array(8, 2**64 - 1)),)), "claims 18446744073709551615"),
    "strings cut off": (
        _file((_pair("a", 9, _array(8, 2, _text("xyz")) + bytes(4)),), alignment=1),
        "claims 2|cut off",
    ),
    "strings reach out": (_file((_pair("a", 9, _array(8, 1, struct.pack("<Q", 2**63))),)), "reaches beyond"),
    "strings leave for the next": (
        _file((_pair("a", 9, _array(8, 2, struct.pack("<Q", 2**63) + bytes(8))),)),
        "cut off",
    ),
    "strings not UTF-8": (_file((_pair("a", 9, _array(8, 2, _text("x") + _text(b"\x80"))),)), "string 1 is not UTF-8"),
    "alignment 0": (_file((_pair("general.alignment", 4, struct.pack("<I", 0)),)), "power of two"),
    "alignment 33": (_file((_pair("general.alignment", 4, struct.pack("<I", 33)),)), "power of two"),
    "alignment 2^31": (_file((_pair("general.alignment", 4, struct.pack("<I", 2**31)),)), "power of two"),
    "alignment in words": (_file((_pair("general.alignment", 8, _text("32")),)), "power of two"),
    "name empty": (_file((), (_entry(""),), 32), "name of tensor 0 is empty"),
    "name too long": (_file((), (_entry("n" * 256),), 32), "length of 256"),
    "name twice": (_file((), (_entry(), _entry(offset=32)), 64), "appears twice"),
    "five dimensions": (_file((), (_entry(dims=(1, 1, 1, 1, 1)),), 32), "5 dimensions"),
    "2^32 - 1 dimensions": (_file((), (_text("t") + struct.pack("<I", 2**32 - 1) + bytes(64),), 32), "dimensions"),
    "entry cut off": (_file((), (_entry()[:-4],), alignment=1), "needs 28 bytes|claims 1 tensors"),
    "type unknown": (_file((), (_entry(kind=4),), 32), "unknown type 4"),
    "type negative": (_file((), (_entry(kind=2**32 - 1),), 32), "unknown type"),
    "row no whole blocks": (_file((), (_entry(dims=(48, 2), kind=2),), 99), "blocks hold 32"),
    "size wraps": (_file((), (_entry(dims=(2**32, 2**32)),), 32), "needs 73786976294838206464 bytes"),
    "dimension negative": (_file((), (_entry(dims=(2**64 - 1,), kind=24),), 32), "needs 18446744073709551615"),
    "dimension negative beside 0": (_file((), (_entry(dims=(2**64 - 1, 0), kind=24),), 32), "needs 0 bytes"),
    "size just beyond": (_file((), (_entry(dims=(9,), kind=24),), 8), "1 bytes beyond the end"),
    "offset not aligned": (_file((), (_entry(offset=4),), 64), "multiple of 32"),
    "offset beyond": (_file((), (_entry(offset=2**64 - 32),), 64), "offset 18446744073709551584"),
    "overlap": (_file((), (_entry("a", (16,)), _entry("b", (8,), offset=32)), 64), "b: begins inside a"),
    "same place": (_file((), (_entry("a"), _entry("b")), 64), "begins inside"),
    "data missing": (_file((), (_entry(),), 31), "1 bytes beyond the end"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_one_error_that_says_where(name: str) -> None:
    content, message = DAMAGED[name]
    with pytest.raises(FormatError, match=message) as found:
        _parse(content)
    assert str(found.value).startswith("x.gguf: ")


def test_the_files_around_the_damaged_ones_are_read() -> None:
    """So that each damaged file is refused for its damage."""
    assert not _parse(_file()).tensors
    assert _parse(_file((ONE,), version=2)).size("a", 7) == 7
    assert _parse(_file((), (_entry(dims=(8,), kind=24),), 8)).data("t").size == 8
    assert _parse(_file((), (_entry("a", (8,)), _entry("b", (8,), offset=32)), 64)).tensors["b"].shape == (8,)
    far = _parse(_file((), (_entry("a", (8,), offset=64), _entry("b", (8,))), 96))
    assert list(far.tensors) == ["a", "b"] and far.tensors["a"].offset - far.tensors["b"].offset == 64
    empty = _parse(_file((), (_entry("z", (0, 3)), _entry("n", (), offset=0)), 32))
    assert empty.tensors["z"].shape == (3, 0) and empty.data("z").size == 0 and empty.tensors["n"].shape == ()
    wide = _file((_pair("general.alignment", 4, struct.pack("<I", 256)),), (_entry(offset=256),), 288, alignment=256)
    assert _parse(wide).alignment == 256
    assert _parse(_file((_pair("a", 9, _array(8, 0)),))).texts("a") == []
    assert _parse(_file((_pair("a", 9, _array(5, 0)),))).texts("a") == []
    assert _parse(_file((_pair("a", 9, _array(7, 2, b"\1\0")),))).numbers("a").tolist() == [True, False]


def test_a_file_that_is_missing_or_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with pytest.raises(FormatError, match="no such file"):
            read_gguf(path)
        assert not is_gguf(path)
    (tmp_path / "other").write_bytes(b"GGU")
    with pytest.raises(FormatError, match="starts with"):
        read_gguf(tmp_path / "other")
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        read_gguf(tmp_path / "empty")
    assert not is_gguf(tmp_path / "other")


def test_strings_may_not_take_more_memory_than_the_file_and_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes of an empty string become 60 of a list: a file made of them is refused before they are made."""
    monkeypatch.setattr(metadata_module, "_MAX_EXTRA_BYTES", 100_000)
    small = _file((_pair("a", 9, _array(8, 1_000, _text("x") * 1_000)),))
    assert len(_parse(small).texts("a")) == 1_000
    for text, count in (("", 50_000), ("ab", 50_000), ("aaaa\U0001f600", 50_000), ("a" * 90_000 + "\U0001f600", 3)):
        large = _file((_pair("a", 9, _array(8, count, _text(text) * count)),))
        read = GgufFile(memoryview(large), Path("x.gguf"))
        tracemalloc.start()
        with pytest.raises(FormatError, match="too much memory"):
            read.texts("a")
        assert (
            tracemalloc.get_traced_memory()[1] < len(large) + 350_000
        )  # and the search of a string for wide characters
        tracemalloc.stop()
    wide = "a" * 100_000 + "\U0001f600"
    with pytest.raises(FormatError, match="too much memory"):
        _parse(_file((_pair("a", 8, _text(wide)),)))
    assert _parse(_file((_pair("a", 8, _text("a" * 100_000 + "é")),))).text("a")[-1] == "é"


def _package_file(path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1, 2, 3, 4, 6])
    writer.add_token_scores([0.5, -1.0, 0.0, 1e-40, 3.0])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ x }}")
    for value, kind in ((-5, "int32"), (2**40, "uint64"), (-(2**40), "int64"), (200, "uint8"), (-7, "int8")):
        getattr(writer, f"add_{kind}")(f"x.{kind}", value)
    writer.add_tensor("a", np.arange(80, dtype=np.float32).reshape(5, 16))
    writer.add_tensor("b", np.zeros((4, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("c", np.arange(6, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


OURS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": np.array([1, 2, 3, 4, 6], np.int32),
    "tokenizer.ggml.scores": np.array([0.5, -1.0, 0.0, 1e-40, 3.0], np.float32),
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ x }}",
    "x.int32": -5,
    "x.uint64": 2**40,
    "x.int64": -(2**40),
    "x.uint8": np.uint8(200),
    "x.int8": np.int8(-7),
}


def _our_file(path: Path) -> Path:
    tensors = [("a", TYPES["F32"], (5, 16)), ("b", TYPES["Q8_0"], (4, 32)), ("c", TYPES["F16"], (6,))]
    with GgufWriter(path, OURS, tensors) as writer:
        writer.write("c", np.arange(6, dtype=np.float16))
        writer.write("b", np.zeros((4, 34), np.uint8))
        writer.write("a", np.arange(80, dtype=np.float32).reshape(5, 16))
    return path


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    read = read_gguf(_package_file(tmp_path / "theirs.gguf"))
    assert (read.architecture, read.version, read.alignment) == ("llama", 3, 32)
    assert read.metadata.keys() == OURS.keys()
    for key, value in OURS.items():
        expected = np.float32(value) if isinstance(value, float) else value
        assert np.array_equal(read.metadata[key], expected), key
    assert read.numbers("tokenizer.ggml.scores").dtype == np.float32
    assert [(t.name, t.type_name, t.shape, t.num_bytes) for t in read.tensors.values()] == [
        ("a", "F32", (5, 16), 320),
        ("b", "Q8_0", (4, 32), 136),
        ("c", "F16", (6,), 12),
    ]
    assert np.array_equal(read.data("a").view(np.float32), np.arange(80))
    assert np.array_equal(read.data("c").view(np.float16), np.arange(6))


def test_our_bytes_are_the_bytes_of_the_package_and_never_change(tmp_path: Path) -> None:
    ours = _our_file(tmp_path / "ours.gguf").read_bytes()
    assert ours == _package_file(tmp_path / "theirs.gguf").read_bytes()
    assert hashlib.sha256(ours).hexdigest()[:32] == "db2b78895305e2e85986543e2924a748"


_FLOATS = st.floats(width=32, allow_nan=False)
_VALUES = st.one_of(
    st.text(max_size=6),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    _FLOATS,
    st.lists(st.text(max_size=4), max_size=5),
    st.sampled_from(sorted(set(NUMBERS) - {7})).flatmap(
        lambda number: st.integers(0, 100).map(lambda n: np.arange(n % 7).astype(NUMBERS[number]))
    ),
)
_SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 3))
# Two types have the number 42, and a file holds one of them (see below): of small tensors that cannot be seen.
_TYPES = st.sampled_from(sorted(TYPES.keys() - {"Q2_0_G128"}))


@given(
    values=st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=8), _VALUES, max_size=5),
    tensors=st.dictionaries(st.text(min_size=1, max_size=6), st.tuples(_TYPES, _SHAPES), max_size=4),
    alignment=st.sampled_from([8, 32, 128]),
)
@settings(max_examples=20, deadline=None)
def test_any_content_comes_back_here_and_in_the_package(
    tmp_path_factory: pytest.TempPathFactory,
    values: dict[str, Any],
    tensors: dict[str, tuple[str, tuple[int, int]]],
    alignment: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    wanted = {"general.architecture": "x", "general.alignment": alignment} | values
    table = [(name, TYPES[kind], (rows, n * TYPES[kind].block_elements)) for name, (kind, (rows, n)) in tensors.items()]
    contents = {}
    with GgufWriter(path, wanted, table) as writer:
        for name, kind, shape in table:
            size = kind.num_bytes(shape)
            contents[name] = np.random.default_rng(size).integers(0, 256, size, np.uint8)
            writer.write(name, contents[name])
    read = read_gguf(path)
    assert list(read.metadata) == list(wanted) and list(read.tensors) == list(tensors)
    for key, value in wanted.items():
        found = read.metadata[key]
        assert np.array_equal(found, np.float32(value) if isinstance(value, float) else value), key
        assert isinstance(value, np.ndarray) <= (getattr(found, "dtype", None) == getattr(value, "dtype", None))
    for name, kind, shape in table:
        assert read.tensors[name].shape == shape
        assert read.tensors[name].type is kind and np.array_equal(read.data(name), contents[name]), name
    known = {kind.value for kind in gguf.GGMLQuantizationType}
    if all(kind.number in known and kind.name != "Q8_1" and shape[0] for _, kind, shape in table):
        theirs = gguf.GGUFReader(str(path))
        assert {t.name: (t.data_offset, t.n_bytes) for t in theirs.tensors} == {
            t.name: (t.offset, t.num_bytes) for t in read.tensors.values()
        }
        assert all(np.array_equal(theirs.fields[key].contents(), read.metadata[key]) for key in wanted)


def test_numbers_below_the_normal_ones_come_back_bit_for_bit(tmp_path: Path) -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    singles = np.arange(1, 2**23, 99_991, dtype=np.uint32).view(np.float32)
    with GgufWriter(
        tmp_path / "x.gguf", {}, [("h", TYPES["F16"], halves.shape), ("s", TYPES["F32"], singles.shape)]
    ) as writer:
        writer.write("h", halves)
        writer.write("s", singles)
    read = read_gguf(tmp_path / "x.gguf")
    assert read.data("h").tobytes() == halves.tobytes() and read.data("s").tobytes() == singles.tobytes()


def _mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Bytes flipped, 64-bit fields replaced by sizes that overflow, pieces cut out or doubled."""
    place = st.integers(0, len(content) - 1)
    sizes = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**61, 2**63 - 1, 2**63, 2**64 - 1])

    def flip(at: tuple[int, int]) -> Callable[[bytes], bytes]:
        return lambda old: old[: at[0]] + bytes([at[1]]) + old[at[0] + 1 :]

    def size(at: tuple[int, int]) -> Callable[[bytes], bytes]:
        return lambda old: old[: at[0]] + struct.pack("<Q", at[1]) + old[at[0] + 8 :]

    def cut(at: tuple[int, int]) -> Callable[[bytes], bytes]:
        return lambda old: old[: at[0]] + old[at[1] :]

    step = st.one_of(
        st.tuples(place, st.integers(0, 255)).map(flip),
        st.tuples(place, sizes).map(size),
        st.tuples(place, place).map(cut),
    )

    def apply(steps: list[Callable[[bytes], bytes]]) -> bytes:
        new = content
        for one in steps:
            new = one(new)
        return new

    return st.lists(step, min_size=1, max_size=4).map(apply)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_mutation_crashes_or_points_outside(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.gguf"
    original = path.read_bytes() if path.exists() else _package_file(path).read_bytes()
    content = data.draw(_mutations(original))
    try:
        read = _parse(content)
        sizes = [read.data(name).size for name in read.tensors]
    except FormatError:
        return
    spans = sorted((t.offset, t.offset + t.num_bytes) for t in read.tensors.values() if t.num_bytes)
    assert sizes == [t.num_bytes for t in read.tensors.values()]
    assert all(end <= len(content) for _, end in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_typed_getters_name_file_and_key() -> None:
    read = _parse(
        _file(
            (
                _pair("n", 4, struct.pack("<I", 7)),
                _pair("f", 6, struct.pack("<f", np.nan)),
                _pair("s", 8, _text("x")),
                _pair("b", 7, b"\1"),
                _pair("a", 9, _array(5, 1, bytes(4))),
                _pair("t", 9, _array(8, 1, _text("x"))),
            )
        )
    )
    assert read.text("s") == "x" and read.flag("b") is True and read.number("n") == 7.0 and read.size("n", 7) == 7
    assert read.text("none", None) is None and read.size("none", 1, default=5) == 5 and read.texts("none", []) == []
    for ask, message in (
        (lambda: read.text("n"), "n: found 7, a string"),
        (lambda: read.text("none"), "no key 'none'"),
        (lambda: read.flag("n"), "a truth value"),
        (lambda: read.size("n", 6), "from 0 to 6"),
        (lambda: read.size("n", 9, least=8), "from 8 to 9"),
        (lambda: read.size("b", 9), "found True"),
        (lambda: read.number("b"), "found True"),
        (lambda: read.number("f"), "finite"),
        (lambda: read.texts("a"), "array of int32"),
        (lambda: read.texts("s"), "an array of strings"),
        (lambda: read.numbers("t"), "an array of numbers"),
        (lambda: read.data("none"), "no tensor"),
        (lambda: read.architecture, "general.architecture"),
    ):
        with pytest.raises(FormatError, match=message):
            ask()


def test_the_number_that_two_programs_gave_away(tmp_path: Path) -> None:
    """42 is Q2_0 in blocks of 64, in older files of PrismML in blocks of 128: the offsets tell which."""
    for name in ("Q2_0", "Q2_0_G128"):
        table = [(letter, TYPES[name], (32, 256)) for letter in "abc"]
        with GgufWriter(tmp_path / name, {}, table) as writer:
            for letter in "abc":
                writer.write(letter, np.zeros(TYPES[name].num_bytes((32, 256)), np.uint8))
        assert {tensor.type_name for tensor in read_gguf(tmp_path / name).tensors.values()} == {name}


def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for metadata, tensors, message in (
        ({"a": ["x", 1]}, [], "strings only"),
        ({"a": None}, [], "NoneType"),
        ({"a": 2**64}, [], "64 bits"),
        ({"a": 1e300}, [], "beyond float32"),
        ({"a": np.zeros((2, 2))}, [], "2 dimensions"),
        ({"a": np.complex64(1)}, [], "complex64"),
        ({"a": "\ud800"}, [], "UTF-8"),
        ({"": 1}, [], "0 characters"),
        ({"general.alignment": 33}, [], "power of two"),
        ({}, [("t", "F32", (1,)), ("t", "F32", (1,))], "appears twice"),
        ({}, [("t" * 64, "F32", (1,))], "63 bytes"),
        ({}, [("\ud800", "F32", (1,))], "UTF-8"),
        ({}, [("t", "TQ1_0", (2, 100))], "blocks hold 256"),
        ({}, [("t", "F32", (1, 1, 1, 1, 1))], "5 dimensions"),
    ):
        with pytest.raises(InputError, match=message):
            GgufWriter(path, metadata, [(name, gguf_type(kind), shape) for name, kind, shape in tensors])
    with pytest.raises(InputError, match="unknown GGUF type 'TQ1'"):
        gguf_type("TQ1")
    one = [("t", TYPES["F32"], (2, 2))]
    for name, array, message in (
        ("u", np.zeros(4, np.float32), "not announced"),
        ("t", np.zeros((2, 2)), "float64"),
        ("t", np.zeros(4, np.float32), r"\[4\], announced F32"),
        ("t", np.zeros(15, np.uint8), "uint8"),
    ):
        with pytest.raises(InputError, match=message), GgufWriter(path, {}, one) as writer:
            writer.write(name, array)
    with pytest.raises(InputError, match="never written: t"), GgufWriter(path, {}, one):
        pass
    assert list(tmp_path.iterdir()) == []
