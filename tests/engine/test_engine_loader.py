"""The C++ loader against damaged model directories: each kind of damage is refused with a message that names it, and a
short fuzz run (native/tests/fuzz_loader.py) finds no crash, hang or large allocation.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from toy_models import add_tokenizer, make_toy

from wrinklefree import _native
from wrinklefree.artifact.config import parse_config
from wrinklefree.errors import FormatError, InputError

Header = dict[str, Any]
GATE = "model.layers.0.mlp.gate_proj"
NORM = "model.norm.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy(tmp_path_factory.mktemp("loader") / "toy", "llama_row_odd_sizes")


@pytest.fixture
def copy(source: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path


def load(directory: Path) -> Any:
    return _native.Model.load(str(directory), threads=1)


def split(directory: Path) -> tuple[Header, bytes]:
    data = (directory / "model.safetensors").read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def padded(text: bytes) -> bytes:
    """The header padded as writers do, so that the tensors behind it stay aligned."""
    return text + b" " * (-(8 + len(text)) % 64)


def join(directory: Path, header: Header | bytes, data: bytes) -> None:
    text = header if isinstance(header, bytes) else padded(json.dumps(header).encode())
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def edit_config(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((directory / "config.json").read_text())
    edit(config)
    (directory / "config.json").write_text(json.dumps(config))


def edit_tensors(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change tensors and write a file that is right as a file. The engine wants aligned tensors, so sizes stay even."""
    tensors = dict(load_file(directory / "model.safetensors"))
    edit(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, directory / "model.safetensors")


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


def setter(key: str, value: Any, inner: str | None = None) -> Callable[[dict[str, Any]], object]:
    return lambda c: (c[inner] if inner else c).__setitem__(key, value)


Q_PROJ, O_PROJ = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.o_proj"  # with and without factors


def ranks(**changes: Any) -> Callable[[dict[str, Any]], object]:
    """Change the ranks that config.json announces: q, k (64 and 32 rows), the layer without any, or an unknown name."""
    names = {"q": Q_PROJ, "k": Q_PROJ.replace("q_proj", "k_proj"), "o": O_PROJ, "other": "model.norm"}
    return lambda c: c["wrinklefree"]["low_rank"].update({names[key]: rank for key, rank in changes.items()})


LOW_RANK_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another rank": (ranks(q=4), r"q_proj.low_rank_u': found 'F16' \[64, 5\], config.json needs F16 \[64, 4\]"),
    "rank zero": (ranks(q=0), "low_rank: .*q_proj': allowed is an integer from 1"),
    "rank as text": (ranks(q="5"), "low_rank: .*q_proj': allowed is an integer from 1"),
    "rank huge": (ranks(q=2**40), "low_rank: .*q_proj': allowed is an integer from 1"),
    "rank above the sizes": (ranks(k=33), "k_proj': found 33, a 32 x 64 layer takes 1 to 32"),
    "factors missing": (ranks(o=2), "o_proj.low_rank_u': is missing"),
    "no linear layer": (ranks(other=2), "low_rank names 14 linear layers, the model has 13 of them"),
    "not announced": (lambda c: c["wrinklefree"]["low_rank"].pop(Q_PROJ), "config.json has no use for this tensor"),
    "none announced": (setter("low_rank", None, "wrinklefree"), "config.json has no use for this tensor"),
    "no object": (setter("low_rank", [5], "wrinklefree"), "low_rank: found an array, allowed is an object"),
}
LOW_RANK_TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "u transposed": (lambda t: t.update({U: t[U].T}), r"low_rank_u': found 'F16' \[5, 64\]"),
    "u of floats": (lambda t: t.update({U: t[U].astype(np.float32)}), "low_rank_u': found 'F32'"),
    "v too narrow": (lambda t: t.update({V: t[V][:, :-2]}), r"low_rank_v': found 'F16' \[5, 62\]"),
    "v missing": (lambda t: t.pop(V), "low_rank_v': is missing"),
    "u infinite": (lambda t: t[U].__setitem__((3, 3), np.inf), "low_rank_u': found an infinity or NaN"),
}
U, V = (f"{Q_PROJ}.low_rank_{factor}" for factor in "uv")


@pytest.fixture
def corrected(tmp_path: Path) -> Path:
    directory = make_toy(tmp_path, "low_rank")
    config = json.loads((directory / "config.json").read_text())
    assert config["wrinklefree"]["low_rank"][Q_PROJ] == 5 and O_PROJ not in config["wrinklefree"]["low_rank"]
    return directory


@pytest.mark.parametrize("name", LOW_RANK_DAMAGE)
def test_ranks_that_are_not_those_of_the_factors(corrected: Path, name: str) -> None:
    edit, expected = LOW_RANK_DAMAGE[name]
    edit_config(corrected, edit)
    with pytest.raises(FormatError, match=expected):
        load(corrected)


@pytest.mark.parametrize("name", LOW_RANK_TENSORS)
def test_damaged_factors(corrected: Path, name: str) -> None:
    edit, expected = LOW_RANK_TENSORS[name]
    edit_tensors(corrected, edit)
    with pytest.raises(FormatError, match=expected):
        load(corrected)


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


CONFIG_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no packed model": (lambda c: c.pop("wrinklefree"), "this is no packed model; make one with wf export"),
    "a checkpoint": (setter("format", "checkpoint", "wrinklefree"), "format: found 'checkpoint'"),
    "newer version": (setter("format_version", 2, "wrinklefree"), "format_version: found 2, this build reads 1"),
    "version as text": (setter("format_version", "1", "wrinklefree"), "format_version: found '1'"),
    "old layout": (setter("layout", "t2-r4c64", "wrinklefree"), "found 't2-r4c64'.*export the checkpoint again"),
    "wrong layout": (setter("layout", "t1.6-r16c64", "wrinklefree"), r"q_proj.*needs U8 \[5, 512\]"),
    "other table": (setter("embedding", "q5", "wrinklefree"), "embedding: found 'q5', allowed are q8, q6, q4 and f16"),
    "wrong table": (setter("embedding", "q6", "wrinklefree"), r"embed_tokens.*needs U8 \[16, 2, 768\]"),
    "other granularity": (setter("granularity", "block", "wrinklefree"), "granularity: found 'block'"),
    "wrong granularity": (setter("granularity", "tensor", "wrinklefree"), r"needs F32 \[1\]"),
    "group size": (lambda c: c["wrinklefree"].update(granularity="group", group_size=32), "group_size: found 32"),
    "subln promised": (setter("subln", "ones", "wrinklefree"), "attn_sub_norm.weight': is missing"),
    "other family": (setter("model_type", "mamba"), "model_type: found 'mamba', this engine runs llama"),
    "no model type": (lambda c: c.pop("model_type"), "model_type is missing"),
    "other activation": (setter("hidden_act", "gelu"), "hidden_act: found 'gelu'"),
    "no layers": (setter("num_hidden_layers", 0), "num_hidden_layers: found 0, allowed is an integer from 1"),
    "more layers than tensors": (setter("num_hidden_layers", 3), r"model.layers.2.*is missing"),
    "fewer layers than tensors": (setter("num_hidden_layers", 1), "no use for this tensor"),
    "layers as text": (setter("num_hidden_layers", "2"), "num_hidden_layers: found '2'"),
    "layers as real": (setter("num_hidden_layers", 2.0), "num_hidden_layers: found 2,"),
    "hidden negative": (setter("hidden_size", -72), "hidden_size: found -72"),
    "hidden huge": (setter("hidden_size", 2**40), "hidden_size: found 1099511627776"),
    "hidden beyond 64 bits": (setter("hidden_size", 10**25), "hidden_size: found 1e"),
    "vocabulary huge": (setter("vocab_size", 2**31), "vocab_size: found"),
    "heads do not divide": (setter("num_key_value_heads", 4), "must divide num_attention_heads 6"),
    "heads not of hidden": (setter("num_attention_heads", 10), "no multiple of 10 heads"),
    "more key heads": (setter("num_key_value_heads", 12), "num_key_value_heads: found 12"),
    "odd head": (setter("head_dim", 13), "head_dim: found 13, an even number"),
    "context zero": (setter("max_position_embeddings", 0), "max_position_embeddings: found 0"),
    "epsilon negative": (setter("rms_norm_eps", -1e-5), "rms_norm_eps: found -1e-05"),
    "epsilon text": (setter("rms_norm_eps", "small"), "rms_norm_eps: found 'small'"),
    "rope unknown": (setter("rope_type", "yarn", "rope_parameters"), "rope type: found 'yarn'"),
    "rope theta": (setter("rope_theta", 0, "rope_parameters"), "rope_theta: found 0"),
    "rope factor missing": (setter("rope_type", "linear", "rope_parameters"), "factor is missing"),
    "rope no object": (setter("rope_parameters", 5), "an object is needed"),
    "rope in part": (setter("partial_rotary_factor", 0.5), "rotates whole heads only"),
    "tie as text": (setter("tie_word_embeddings", "yes"), "tie_word_embeddings: found 'yes'"),
    "untied without head": (setter("tie_word_embeddings", False), "'lm_head.weight': is missing"),
    "bias promised": (setter("attention_bias", True), "q_proj.bias': is missing"),
    "window without layers": (setter("use_sliding_window", True), "needs layer_types"),
    "unknown layer type": (setter("layer_types", ["full_attention", "linear_attention"]), "layer_types: found"),
    "layer types too few": (setter("layer_types", ["full_attention"]), "one entry for each hidden layer"),
    "layer types of numbers": (setter("layer_types", [1, 2]), "layer_types: found 1"),
}


@pytest.mark.parametrize("name", CONFIG_DAMAGE)
def test_damaged_configs(copy: Path, name: str) -> None:
    edit, expected = CONFIG_DAMAGE[name]
    edit_config(copy, edit)
    with pytest.raises(FormatError, match=expected) as caught:
        load(copy)
    assert str(copy) in str(caught.value)  # the file is named


def inside(*keys: str, value: Any) -> Callable[[dict[str, Any]], object]:
    """Set, or with None remove, an entry behind ``keys``."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        if value is None:
            config.pop(keys[-1])
        else:
            config[keys[-1]] = value

    return edit


GEMMA_DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "soft caps of scores": (inside("attn_logit_softcapping", value=50.0), "attn_logit_softcapping"),
    "soft caps of logits": (inside("final_logit_softcapping", value=30.0), "final_logit_softcapping"),
    "both directions": (inside("use_bidirectional_attention", value=True), "use_bidirectional_attention"),
    "other activation": (inside("hidden_activation", value="gelu"), "hidden_activation: found 'gelu'"),
    "no activation": (inside("hidden_activation", value=None), "hidden_activation"),
    "no kinds of layers": (inside("layer_types", value=None), "layer_types"),
    "unknown kind": (inside("layer_types", value=["full_attention"] * 2 + ["chunked"]), "layer_types"),
    "no window": (inside("sliding_window", value=None), "sliding_window"),
    "no scale": (inside("query_pre_attn_scalar", value=None), "query_pre_attn_scalar"),
    "no head size": (inside("head_dim", value=None), "head_dim"),
    "one rotary embedding": (inside("rope_parameters", "sliding_attention", value=None), "sliding_attention"),
    "unknown rotary embedding": (inside("rope_parameters", "full_attention", "rope_type", value="yarn"), "'yarn'"),
}


@pytest.mark.parametrize("name", GEMMA_DAMAGE)
def test_what_gemma_3_may_not_say_is_refused_by_both_readers(tmp_path: Path, name: str) -> None:
    make_toy(tmp_path, "gemma3")
    load(tmp_path)
    edit, expected = GEMMA_DAMAGE[name]
    edit_config(tmp_path, edit)
    with pytest.raises(FormatError, match=expected):
        load(tmp_path)
    with pytest.raises(FormatError, match=expected):
        parse_config(json.loads((tmp_path / "config.json").read_text()), "config.json")


def test_an_untold_tie_follows_the_tensors(copy: Path) -> None:
    edit_config(copy, lambda c: c.pop("tie_word_embeddings"))
    assert load(copy).vocab_size == 256


def test_config_that_is_no_config(copy: Path) -> None:
    path = copy / "config.json"
    for content, expected in (
        (b"", "JSON value"),
        (b"[1]", "wrinklefree"),
        (b" " * (4 << 20) + b"{}", "at most 4194304"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=expected):
            load(copy)
    path.unlink()
    with pytest.raises(FormatError, match="cannot be opened"):
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


def test_random_model_of_a_wrong_config() -> None:
    with pytest.raises(FormatError, match="config: model_type is missing"):
        _native.Model.random("{}")
    with pytest.raises(FormatError, match="granularity: found 'x'"):
        _native.Model.random("{}", granularity="x")
    huge = {
        "model_type": "llama",
        "hidden_size": 65536,
        "intermediate_size": 1 << 20,
        "num_hidden_layers": 1024,
        "num_attention_heads": 64,
        "vocab_size": 1 << 22,
        "max_position_embeddings": 1 << 24,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
    }
    with pytest.raises(InputError, match=r"random weights would take .* MiB, this machine has"):
        _native.Model.random(json.dumps(huge))


def test_cache_beyond_the_memory_is_refused(copy: Path) -> None:
    edit_config(copy, setter("max_position_embeddings", 1 << 24))
    assert _native.Model.load(str(copy)).context == 4096
    with pytest.raises(InputError, match=r"KV caches would take .* smaller context or fewer slots"):
        _native.Model.load(str(copy), context=1 << 24, slots=512)


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


def test_short_fuzz_run() -> None:
    script = Path(__file__).parents[2] / "native" / "tests" / "fuzz_loader.py"
    command = [sys.executable, str(script), "--cases", "1500", "--seconds", "15", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert outcome["cases"] >= 100  # in 15 s on a busy machine; 1500 take about 2 s
    assert outcome["refused"] > outcome["cases"] / 2
    assert outcome["ran"] > 0  # some damage is none: the fuzzer reaches the forward pass


def test_tokenizer_files_do_not_concern_the_loader(copy: Path) -> None:
    add_tokenizer(copy)
    assert load(copy).vocab_size == 256


def test_weights_in_memory_and_mapped_are_the_same(copy: Path) -> None:
    tokens = np.arange(5, dtype=np.int32)
    rows = np.empty((2, 256), np.float32)
    for row, keep_mapped in zip(rows, (False, True), strict=True):
        _native.Model.load(str(copy), threads=1, keep_mapped=keep_mapped).forward(0, tokens, row)
    np.testing.assert_array_equal(rows[0], rows[1])


@pytest.mark.parametrize("keep_mapped", [False, True])
@pytest.mark.parametrize("name", ["llama_row_odd_sizes", "dense_row", "dense_group_128"])
def test_stored_in_one_layout_and_run_in_the_other(tmp_path: Path, name: str, keep_mapped: bool) -> None:
    """The codes are the same (tests/native); so must the logits be, up to the order of sums over groups: 1e-5."""
    directory = make_toy(tmp_path, name)
    tokens = np.arange(5, dtype=np.int32)
    rows = np.empty((3, 256), np.float32)
    for row, layout in zip(rows, ("stored", "t2", "t1.6"), strict=True):
        model = _native.Model.load(str(directory), threads=2, keep_mapped=keep_mapped, layout=layout)
        assert layout == "stored" or model.layout == layout + "-r16c64"
        model.forward(0, tokens, row)
    if "group" not in name:
        np.testing.assert_array_equal(rows[1:], rows[[0, 0]])
    np.testing.assert_allclose(rows[1:], rows[[0, 0]], rtol=0, atol=1e-5 * rows[0].std())


def test_unknown_ways_to_hold_weights_are_refused(copy: Path) -> None:
    with pytest.raises(InputError, match=r"layout: found 't3', allowed are stored, t2 and t1.6"):
        _native.Model.load(str(copy), layout="t3")
    with pytest.raises(InputError, match="prefetch_bytes: found -2"):
        _native.Model.load(str(copy), prefetch_bytes=-2)
    assert _native.Model.load(str(copy), prefetch_bytes=512).prefetch_bytes == 512


def test_a_file_cut_off_after_loading_does_no_harm(copy: Path) -> None:
    # In a mapping the missing pages would end the process with SIGBUS.
    model = load(copy)
    before, after = np.empty((2, 256), np.float32)
    model.forward(0, np.arange(5, dtype=np.int32), before)
    os.truncate(copy / "model.safetensors", 0)
    model.truncate(0, 0)
    model.forward(0, np.arange(5, dtype=np.int32), after)
    np.testing.assert_array_equal(before, after)
