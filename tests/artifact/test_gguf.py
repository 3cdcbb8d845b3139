"""Reading GGUF: what the `gguf` package wrote is listed right; damage of any kind is one FormatError."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.gguf.container import GgufWriter, is_gguf, read_gguf
from wrinklefree.artifact.gguf.types import TYPES
from wrinklefree.errors import FormatError


def _write(path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_token_list(["a"] * 40)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.ones((40, 32), np.float32))
    writer.add_tensor("output.weight", np.zeros((40, 34), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_in_a_file(tmp_path: Path) -> None:
    read = read_gguf(_write(tmp_path / "toy.gguf"))
    assert (read.architecture, read.version) == ("llama", 3)
    assert read.metadata["llama.block_count"] == 2
    assert read.texts("tokenizer.ggml.tokens") == ["a"] * 40
    first, second = read.tensors.values()
    assert (first.name, first.type_name, first.shape) == ("token_embd.weight", "F32", (40, 32))
    assert (second.type_name, second.shape, second.num_bytes) == ("Q8_0", (40, 32), 40 * 34)


def test_what_is_a_gguf_file(tmp_path: Path) -> None:
    assert is_gguf(_write(tmp_path / "toy.gguf"))
    (tmp_path / "other").write_bytes(b"GGU")
    assert not is_gguf(tmp_path / "other") and not is_gguf(tmp_path) and not is_gguf(tmp_path / "none")


def test_damage_is_one_error(tmp_path: Path) -> None:
    good = _write(tmp_path / "toy.gguf").read_bytes()
    cases = {
        "not a GGUF": b"",
        "starts with": b"GGML" + good[4:],
        "version 9": good[:4] + b"\x09\0\0\0" + good[8:],
        "tensors; the limit is": good[:8] + b"\xff" * 8 + good[16:],
        "truncated": good[:200],
        "beyond the end": good[:-64],
    }
    for message, data in cases.items():
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(FormatError, match=message):
            read_gguf(tmp_path / "bad")
    with pytest.raises(FormatError, match="cannot be read"):
        read_gguf(tmp_path / "none")


@given(flips=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_flipped_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    path = _write(tmp_path_factory.mktemp("flip") / "toy.gguf")
    content = bytearray(path.read_bytes())
    for place, value in flips:
        content[place] = value
    path.write_bytes(content)
    try:
        read = read_gguf(path)
    except FormatError:
        return
    assert all(tensor.offset + tensor.num_bytes <= len(content) for tensor in read.tensors.values())


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    metadata = {
        "general.architecture": "llama",
        "a.size": 7,
        "a.flag": True,
        "a.eps": 1e-5,
        "a.texts": ["", "é", "\U0001f600"],
        "a.types": np.arange(5, dtype=np.int32),
    }
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    with GgufWriter(tmp_path / "a.gguf", metadata, [("x", TYPES["F32"], (3, 4)), ("y", TYPES["Q8_0"], (1, 32))]) as out:
        out.write("y", np.arange(34, dtype=np.uint8))
        out.write("x", values)
    read = read_gguf(tmp_path / "a.gguf")
    assert (read.architecture, read.size("a.size", 10), read.flag("a.flag")) == ("llama", 7, True)
    assert read.texts("a.texts") == metadata["a.texts"] and read.number("a.eps") == np.float32(1e-5)
    assert np.array_equal(read.numbers("a.types"), metadata["a.types"])
    assert np.array_equal(read.data("x").view(np.float32), values.reshape(-1))
    assert np.array_equal(read.data("y"), np.arange(34))
    assert [tensor.offset % 32 for tensor in read.tensors.values()] == [0, 0]
