"""config.json and tensor table of a packed directory: the good one is read as written, each lie is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import packed_toys as toys
import pytest
from gguf_toys import toy_config
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.config import Rope, parse_config
from wrinklefree.artifact.manifest import changed_files, model_format, open_packed, read_packed
from wrinklefree.artifact.packing import LAYOUTS
from wrinklefree.artifact.tables import TABLE_FORMATS, TableShape
from wrinklefree.errors import FormatError


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
@pytest.mark.parametrize("embedding", TABLE_FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_is_read_as_written(tmp_path: Path, granularity: Any, embedding: Any, layout: Any) -> None:
    tied = embedding in ("q8", "q4")
    info = replace(toys.INFO, granularity=granularity, embedding=embedding, layout=layout, subln="none")
    config = {**toys.CONFIG, "tie_word_embeddings": tied, "model_type": "qwen3"}
    model = open_packed(toys.write(tmp_path, config, info))
    assert replace(model.info, files={}) == info
    assert model.config == parse_config(config, "toy")
    assert ("lm_head.weight" in model.weights.tensors) is not tied
    assert changed_files(tmp_path, model.info) == []


def test_rope_of_both_spellings() -> None:
    llama3 = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    old = {k: v for k, v in toys.CONFIG.items() if k != "rope_parameters"}
    expected = Rope(5e5, "llama3", 8.0, 1.0, 4.0, 8192)
    assert parse_config({**old, "rope_theta": 5e5, "rope_scaling": llama3}, "x").rope == expected
    new = {**old, "rope_parameters": {**llama3, "rope_theta": 5e5}}
    assert parse_config(new, "x").rope == expected
    assert parse_config({**old, "rope_theta": 1e5, "rope_scaling": None}, "x").rope == Rope(1e5)
    linear = {**old, "rope_scaling": {"type": "linear", "factor": 2}}
    assert parse_config(linear, "x").rope == Rope(10000.0, "linear", 2.0)


def test_context_stays_inside_a_sliding_window() -> None:
    config = {**toys.CONFIG, "model_type": "mistral", "sliding_window": 32}
    assert parse_config(config, "x").max_position_embeddings == 32
    assert parse_config({**config, "use_sliding_window": False}, "x").max_position_embeddings == 128


_BAD_CONFIG: dict[str, dict[str, Any]] = {
    "model_type": {"model_type": "mamba"},
    "vocab_size": {"vocab_size": 0},
    "hidden_size": {"hidden_size": "64"},
    "intermediate_size": {"intermediate_size": 2**40},
    "num_hidden_layers": {"num_hidden_layers": True},
    "num_attention_heads": {"num_attention_heads": None},
    "key-value heads": {"num_key_value_heads": 3},
    "head_dim": {"head_dim": 15},
    "rms_norm_eps": {"rms_norm_eps": -1e-5},
    "hidden_act": {"hidden_act": "gelu"},
    "tie_word_embeddings": {"tie_word_embeddings": 1},
    "max_position_embeddings": {"max_position_embeddings": 1.5},
    "rope_type": {"rope_parameters": {"rope_type": "yarn"}},
    "rope_theta": {"rope_parameters": {"rope_theta": 10**400}},
    "rope_parameters": {"rope_parameters": [1]},
    "factor": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}},
}
_BAD_INFO: dict[str, dict[str, Any]] = {
    "format_version": {"format_version": 2},
    "layout": {"layout": "t2-r8c32"},
    "export the model again": {"layout": "t2-r4c64"},
    "granularity": {"granularity": ["group"]},
    "group_size": {"group_size": 96},
    "embedding": {"embedding": "q5"},
    "subln": {"subln": 1},
    "stage": {"stage": 3},
    "dlm": {"dlm": "yes"},
    "tokens_seen": {"tokens_seen": -1},
    "files": {"files": {"../secret": "0" * 64}},
}


@pytest.mark.parametrize("key", _BAD_CONFIG)
def test_a_bad_config_names_its_key(tmp_path: Path, key: str) -> None:
    toys.write(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **_BAD_CONFIG[key]}))
    with pytest.raises(FormatError, match=key):
        read_packed(tmp_path)


@pytest.mark.parametrize("kinds", [[["full_attention"]], [{}, 1], "full_attention", ["half_attention"]])
def test_layer_types_of_any_kind_are_one_error(kinds: Any) -> None:
    with pytest.raises(FormatError, match=r"layer_types: .*full_attention or sliding_attention"):
        parse_config({**toy_config("gemma3_text"), "layer_types": kinds}, "config.json")


@pytest.mark.parametrize("key", _BAD_INFO)
def test_a_bad_info_names_its_key(tmp_path: Path, key: str) -> None:
    toys.write(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["wrinklefree"].update(_BAD_INFO[key])
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(FormatError, match=key):
        read_packed(tmp_path)


def test_config_and_tensors_must_agree(tmp_path: Path) -> None:
    toys.write(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    for change, message in [
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "unknown tensor model.layers.1"),
        ({"intermediate_size": 64}, "config.json asks for"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"model_type": "qwen3"}, "q_norm.weight is missing"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps({**good, **change}))
        with pytest.raises(FormatError, match=message):
            open_packed(tmp_path)


def test_other_directories_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such model directory"):
        read_packed(tmp_path / "none")
    with pytest.raises(FormatError, match=r"config\.json: found no such file"):
        read_packed(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(FormatError, match="wf export"):
        read_packed(tmp_path)
    assert model_format({}) == "hf"
    assert model_format({"wrinklefree": {"format": "checkpoint"}}) == "checkpoint"


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    toys.write(tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert changed_files(tmp_path, open_packed(tmp_path).info) == ["model.safetensors"]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bytes_never_crash(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random damage of config.json or of the header: a FormatError or a model whose tables agree."""
    directory = toys.write(tmp_path_factory.mktemp("flip"))
    path = directory / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, min(len(content), 4096) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        model = open_packed(directory)
    except FormatError:
        return
    shape = TableShape(model.config.vocab_size, model.config.hidden_size, model.info.embedding)
    assert model.weights.array("model.embed_tokens.weight").shape == shape.codes
