"""The C++ loader against configs that are damaged, or that the tensors beside them do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import edit_config, edit_tensors, inside, load, setter
from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.artifact.config import parse_config
from wrinklefree.errors import FormatError, InputError

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
