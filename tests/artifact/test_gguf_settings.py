"""config -> keys of GGUF -> config is the identity on what the engine uses, through a real file."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_toys import toy_config
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.gguf.container import GgufFile, GgufWriter, read_gguf
from wrinklefree.artifact.gguf.settings import from_gguf, rope_factors, to_gguf
from wrinklefree.artifact.gguf.types import gguf_type
from wrinklefree.errors import FormatError, InputError

KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "bitnet", "llama with SubLN")
thetas = st.sampled_from([100.0, 10000.0, 500000.0, 1e6, 1234567.0])


@st.composite
def ropes(draw: st.DrawFn, kinds: tuple[str, ...]) -> dict[str, Any]:
    kind = draw(st.sampled_from(kinds))
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": draw(thetas)}
    if kind == "linear":
        rope["factor"] = draw(st.sampled_from([2.0, 4.0, 8.0, 1.5]))
    if kind == "llama3":
        rope |= {"factor": draw(st.sampled_from([8.0, 32.0])), "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope |= {"original_max_position_embeddings": 8192}
    return rope


@st.composite
def configs(draw: st.DrawFn) -> tuple[dict[str, Any], bool]:
    name = draw(st.sampled_from(KINDS))
    subln, model_type = name.endswith("SubLN"), name.split()[0]
    heads, head_dim = draw(st.sampled_from([(4, 64), (2, 128), (8, 32)]))
    layers = draw(st.integers(1, 14))
    config = toy_config(
        model_type,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=draw(st.sampled_from([heads, heads // 2])),
        head_dim=head_dim,
        hidden_size=heads * head_dim,
        intermediate_size=draw(st.integers(1, 5000)),
        vocab_size=draw(st.integers(1, 300)),
        max_position_embeddings=draw(st.integers(1, 1 << 20)),
        rms_norm_eps=draw(st.sampled_from([1e-5, 1e-6, 1e-8, 3.3e-5])),
        tie_word_embeddings=subln or model_type == "bitnet" or draw(st.booleans()),
    )
    if model_type == "bitnet":
        config["hidden_act"] = draw(st.sampled_from(["relu2", "silu"]))
    if model_type == "gemma3_text":
        config["query_pre_attn_scalar"] = head_dim
        config["layer_types"] = draw(
            st.lists(st.sampled_from(["sliding_attention", "full_attention"]), min_size=layers, max_size=layers)
        )
        config["sliding_window"] = draw(st.integers(1, 4096))
        config["rope_parameters"] = {
            "full_attention": draw(ropes(("default", "linear"))),
            "sliding_attention": draw(ropes(("default",))),
        }
    else:
        known = (model_type in ("llama", "mistral") and not subln) or config["hidden_act"] == "relu2"
        config["rope_parameters"] = draw(ropes(("default", "linear", "llama3") if known else ("default", "linear")))
        if model_type in ("mistral", "qwen2"):
            config["sliding_window"] = draw(st.sampled_from([None, 17]))
    return config, subln


def through_a_file(config: dict[str, Any], subln: bool, keys: dict[str, Any] | None = None) -> GgufFile:
    architecture, metadata = to_gguf(config, subln)
    metadata |= keys or {}
    table = np.zeros((config["vocab_size"], 1), np.float32)
    arrays = {"token_embd.weight": table}
    if not config["tie_word_embeddings"]:
        arrays["output.weight"] = table
    if (factors := rope_factors(config)) is not None:
        arrays["rope_freqs.weight"] = factors
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.gguf"
        with GgufWriter(path, metadata, [(n, gguf_type("F32"), a.shape) for n, a in arrays.items()]) as writer:
            for name, array in arrays.items():
                writer.write(name, array)
        file = read_gguf(path)
    assert file.architecture == architecture
    return file


@given(configs())
@settings(max_examples=30, deadline=None)
def test_settings_survive_the_way_through_gguf(drawn: tuple[dict[str, Any], bool]) -> None:
    config, subln = drawn
    again = from_gguf(through_a_file(config, subln), subln)
    before, after = parse_config(config, "before"), parse_config(again, "after")
    renamed = {"mistral": "llama"}.get(before.model_type, before.model_type)
    if before.rope.kind == "llama3":  # several settings may give the same divisors, and none that all are one
        ones = np.ones(before.head_dim // 2, np.float32)
        found, wanted = rope_factors(again), rope_factors(config)
        np.testing.assert_allclose(ones if found is None else found, wanted, rtol=1e-6)
        assert after.rope.theta == before.rope.theta
        after = replace(after, rope=before.rope)
    assert after == replace(before, model_type=renamed)
    if before.model_type == "gemma3_text":
        for key in ("layer_types", "sliding_window", "query_pre_attn_scalar", "rope_parameters"):
            assert again[key] == config[key], key


def test_divisors_of_unpublished_settings_are_solved_for() -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 2.0, "high_freq_factor": 6.0,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    config = toy_config("llama", rope_parameters=rope)
    again = from_gguf(through_a_file(config, False))
    found, wanted = rope_factors(again), rope_factors(config)
    assert found is not None
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_settings_nothing_of_ours_computes_are_refused() -> None:
    config = toy_config("llama")
    scaled = {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
    assert from_gguf(through_a_file(config, False, scaled))["rope_parameters"]["rope_type"] == "default"
    older = {"llama.rope.scale_linear": 4.0}
    assert from_gguf(through_a_file(config, False, older))["rope_parameters"]["factor"] == 4.0
    capped = {"gemma3.final_logit_softcapping": 30.0}
    with pytest.raises(FormatError, match="final_logit_softcapping"):
        from_gguf(through_a_file(toy_config("gemma3_text"), False, capped))
    other = toy_config("gemma3_text")
    other["rope_parameters"]["sliding_attention"] = {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}
    with pytest.raises(InputError, match="windowed layers"):
        to_gguf(other)


def test_gemma_s_pattern_is_that_of_its_class() -> None:
    kinds = ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in range(13)]  # Gemma3TextConfig
    config = toy_config("gemma3_text", num_hidden_layers=13)
    config["layer_types"] = kinds
    file = through_a_file(config, False)
    assert file.size("gemma3.attention.sliding_window_pattern", 100) == 6
    assert from_gguf(file)["layer_types"] == kinds
