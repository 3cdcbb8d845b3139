"""The C++ loader against damaged model directories: each kind of damage is refused with a message that names it.

Damage at random is the matter of tests/fuzz.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import EMBEDDING, GATE, NORM, Header, edit_tensors, join, load, padded, split
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import add_tokenizer, make_toy

from wrinklefree import _native
from wrinklefree.errors import FormatError


def test_files_of_the_reference_writer_load_too(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: None)
    assert load(copy).vocab_size == 256


HEADER_DAMAGE: dict[str, tuple[Callable[[Header], object], str]] = {
    "unknown dtype": (lambda h: h[NORM].update(dtype="F33"), "unknown dtype 'F33'"),
    "dtype no string": (lambda h: h[NORM].update(dtype=3), "no string dtype"),
    "another dtype": (lambda h: h[NORM].update(dtype="I32"), "found 'I32' .72., config.json needs F32"),
    "shape too large": (lambda h: h[NORM].update(shape=[73]), "do not hold the 292 bytes"),
    "shape wraps 64 bits": (lambda h: h[NORM].update(shape=[2**62, 4, 72]), "beyond what any file holds"),
    "shape wraps to right": (lambda h: h[NORM].update(shape=[2**63 - 1, 2, 72]), "beyond what any file holds"),
    "shape negative": (lambda h: h[NORM].update(shape=[-72]), "non-negative integer"),
    "shape no array": (lambda h: h[NORM].update(shape=72), "no array shape"),
    "shape of reals": (lambda h: h[NORM].update(shape=[72.0]), "non-negative integer"),
    "shape of huge number": (lambda h: h[NORM].update(shape=[10**30]), "non-negative integer"),
    "many dimensions": (lambda h: h[NORM].update(shape=[72] + [1] * 8), "9 dimensions"),
    "reshaped": (lambda h: h[NORM].update(shape=[8, 9]), "needs F32 .72."),
    "offsets reversed": (lambda h: h[NORM].update(data_offsets=h[NORM]["data_offsets"][::-1]), "do not hold"),
    "offsets negative": (lambda h: h[NORM].update(data_offsets=[-288, 0]), "non-negative integer"),
    "one offset": (lambda h: h[NORM].update(data_offsets=[0]), "needs two numbers"),
    "no offsets": (lambda h: h[NORM].pop("data_offsets"), "an object with dtype, shape and data_offsets"),
    "a fourth field": (lambda h: h[NORM].update(extra=1), "an object with dtype, shape and data_offsets"),
    "entry no object": (lambda h: h.update({NORM: 1}), "an object with dtype, shape and data_offsets"),
    "overlap": (lambda h: h[NORM].update(data_offsets=[0, 288]), "gaps and overlaps"),
    "behind the end": (
        lambda h: h[NORM].update(data_offsets=[2**62, 2**62 + 288]),
        "gaps and overlaps",
    ),
    "tensor missing": (lambda h: h.update(renamed=h.pop(NORM)), f"'{NORM}': is missing"),
    "tensor too many": (
        lambda h: h.update({"extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "'extra': config.json has no use",
    ),
    "terminal codes in a name": (
        lambda h: h.update({"\x1b[31mred": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        r"'\\x1b\[31mred'",
    ),
}


@pytest.mark.parametrize("name", HEADER_DAMAGE)
def test_damaged_headers(copy: Path, name: str) -> None:
    edit, expected = HEADER_DAMAGE[name]
    header, data = split(copy)
    edit(header)
    join(copy, header, data)
    with pytest.raises(FormatError, match=expected):
        load(copy)


HEADER_TEXT: dict[str, tuple[bytes, str]] = {
    "no header": (b"", "does not start with '{'"),
    "an array": (b"[]", "does not start with '{'"),
    "cut off": (b'{"a": {"dtype"', "expected ':'"),
    "text behind": (b"{} {}", "text behind the end"),
    "twice the same name": (b'{"__metadata__": {}, "__metadata__": {}}', "occurs twice"),
    "not UTF-8": (b'{"\xff": 1}', "not UTF-8"),
    "overlong UTF-8": (b'{"\xc0\xaf": 1}', "not UTF-8"),
    "surrogate in UTF-8": (b'{"\xed\xa0\x80": 1}', "not UTF-8"),
    "half a surrogate pair": (rb'{"\ud800": 1}', "surrogate"),
    "unknown escape": (rb'{"\x41": 1}', "unknown escape"),
    "control character": (b'{"a\nb": 1}', "control character"),
    "leading zero": (b'{"__metadata__": 01}', "expected a JSON value"),
    "infinite number": (b'{"__metadata__": 1e999}', "a float64 cannot hold"),
    "NaN": (b'{"__metadata__": NaN}', "expected a JSON value"),
    "nested deeply": (b'{"a":' * 100_000, "levels of nesting"),
    "arrays nested deeply": (b'{"a":' + b"[" * 1_000_000, "levels of nesting"),
    "millions of values": (b'{"__metadata__": [' + b"0," * 3_000_000 + b"0]}", "values"),
    "no tensors": (b"{}", "the tensors need 0 bytes"),
}


@pytest.mark.parametrize("name", HEADER_TEXT)
def test_headers_that_are_no_header(copy: Path, name: str) -> None:
    text, expected = HEADER_TEXT[name]
    _, data = split(copy)
    join(copy, text, data)
    with pytest.raises(FormatError, match=expected):
        load(copy)


def test_too_many_tensors(copy: Path) -> None:
    header, data = split(copy)
    header |= {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(33_000)}
    join(copy, header, data)
    with pytest.raises(FormatError, match="more than 32768 tensors"):
        load(copy)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 5000, -1])
def test_truncated_weights(copy: Path, keep: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"is empty|too few|truncated"):
        load(copy)


def test_bytes_behind_the_last_tensor(copy: Path) -> None:
    with (copy / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(FormatError, match="the tensors need"):
        load(copy)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 2**31])
def test_header_lengths_beyond_the_file(copy: Path, length: int) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with pytest.raises(FormatError, match=f"the header says it has {length} bytes"):
        load(copy)


TENSOR_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "code 3": (lambda t: t[GATE + ".weight"].__setitem__((0, 0, 0), 3), "unused bit pattern 3"),
    "code 3 at the end": (lambda t: t[GATE + ".weight"].__setitem__((-1, -1, -1), 0xC0), "unused bit pattern 3"),
    "NaN norm": (lambda t: t[NORM].__setitem__(5, np.nan), "infinity or NaN"),
    "infinite scale": (lambda t: t[GATE + ".weight_scale"].__setitem__(149, -np.inf), "infinity or NaN"),
    "scale of another granularity": (
        lambda t: t.update({GATE + ".weight_scale": np.ones(1, np.float32)}),
        r"needs F32 \[150\]",
    ),
    "half precision norm": (lambda t: t.update({NORM: t[NORM].astype(np.float16)}), "found 'F16'"),
    "embedding too short": (lambda t: t.update({EMBEDDING: t[EMBEDDING][:-1]}), r"needs U8 \[16, 2, 1024\]"),
    "embedding of floats": (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.float32)}), "found 'F32'"),
    "embedding of int64": (lambda t: t.update({EMBEDDING: t[EMBEDDING].astype(np.int64)}), "found 'I64'"),
    "a head beside a tied one": (
        lambda t: t.update({"lm_head.weight": t[EMBEDDING], "lm_head.weight_scale": t[EMBEDDING + "_scale"]}),
        "'lm_head.weight.*no use",
    ),
    "a norm of another family": (
        lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": np.ones(12, np.float32)}),
        "q_norm.weight.*no use",
    ),
    "a bias of another size": (
        lambda t: t.update({GATE + ".bias": np.ones(151, np.float32)}),
        r"needs F32 \[150\]",
    ),
}


@pytest.mark.parametrize("name", TENSOR_DAMAGE)
def test_damaged_tensors(copy: Path, name: str) -> None:
    edit, expected = TENSOR_DAMAGE[name]
    edit_tensors(copy, edit)
    with pytest.raises(FormatError, match=expected):
        load(copy)


def test_infinite_half_precision_embedding(tmp_path: Path) -> None:
    directory = make_toy(tmp_path, "linear_rope_f16_head")
    edit_tensors(directory, lambda t: t[EMBEDDING].__setitem__((3, 3), np.inf))
    with pytest.raises(FormatError, match="infinity or NaN"):
        load(directory)


def test_a_byte_that_stands_for_no_five_codes(tmp_path: Path) -> None:
    directory = make_toy(tmp_path, "dense_row")
    name = GATE.replace("gate_proj", "down_proj") + ".weight"
    edit_tensors(directory, lambda t: t[name].__setitem__((-1, 1023), 1))
    for options in ({}, {"keep_mapped": True}, {"layout": "t2"}):
        with pytest.raises(FormatError, match=r"down_proj.weight': found a byte that stands for no five codes"):
            _native.Model.load(str(directory), **options)


def test_misaligned_tensor(copy: Path) -> None:
    header, data = split(copy)
    join(copy, padded(json.dumps(header).encode()) + b" ", data)
    with pytest.raises(FormatError, match="no multiple of 4 bytes"):
        load(copy)


def test_things_that_are_no_files(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.unlink()
    weights.mkdir()
    with pytest.raises(FormatError, match="not an ordinary file"):
        load(copy)
    weights.rmdir()
    os.mkfifo(weights)  # opening it for reading would wait for a writer
    with pytest.raises(FormatError, match="not an ordinary file"):
        load(copy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "I8", "F16", "BF16", "X"]) | JSON,
        "shape": st.lists(st.integers(-2, 2**64), max_size=5) | JSON,
        "data_offsets": st.lists(st.integers(-2, 2**64), max_size=3) | JSON,
    },
)


@given(header=st.dictionaries(st.sampled_from([NORM, EMBEDDING, "x"]), ENTRY, max_size=3), size=st.integers(0, 64))
@settings(max_examples=150, deadline=None)
def test_any_header_is_refused(header: Header, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.getbasetemp() / "any_header"
    directory.mkdir(exist_ok=True)
    if not (directory / "config.json").exists():
        make_toy(directory, "llama_tensor")
    join(directory, json.dumps(header).encode(), bytes(size))
    with pytest.raises(FormatError):
        load(directory)


def test_tokenizer_files_do_not_concern_the_loader(copy: Path) -> None:
    add_tokenizer(copy)
    assert load(copy).vocab_size == 256
