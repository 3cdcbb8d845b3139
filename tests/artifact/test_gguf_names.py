"""Names, rows and settings as GGUF has them, against what the `gguf` package and transformers' models say."""

from __future__ import annotations

from typing import Any

import numpy as np
import packed_toys
import pytest

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.gguf.architectures import architecture_for
from wrinklefree.artifact.gguf.names import hf_name, permuted_heads, rows_from_gguf, rows_to_gguf, tensor_name
from wrinklefree.artifact.gguf.settings import rope_factors, to_gguf
from wrinklefree.artifact.manifest import PackedInfo, packed_tensors
from wrinklefree.errors import InputError

GEMMA: dict[str, Any] = {
    **{key: value for key, value in packed_toys.CONFIG.items() if key != "hidden_act"},
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def config_of(model_type: str, **changes: Any) -> dict[str, Any]:
    base = GEMMA if model_type == "gemma3_text" else {**packed_toys.CONFIG, "model_type": model_type}
    return {**base, **({"hidden_act": "relu2"} if model_type == "bitnet" else {}), **changes}


FAMILIES = {
    "llama": ("llama", False),
    "mistral": ("llama", False),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
    "gemma3_text": ("gemma3", False),
    "bitnet": ("bitnet-b1.58", False),
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_are_those_of_the_gguf_package(model_type: str) -> None:
    from gguf import MODEL_ARCH, get_tensor_name_map

    architecture, _ = FAMILIES[model_type]
    theirs = {"llama": MODEL_ARCH.LLAMA, "qwen2": MODEL_ARCH.QWEN2, "qwen3": MODEL_ARCH.QWEN3}
    known = get_tensor_name_map(theirs.get(architecture, MODEL_ARCH.BITNET), 2)
    if architecture == "gemma3":
        known = get_tensor_name_map(MODEL_ARCH.GEMMA3, 2)
    config = config_of(model_type, tie_word_embeddings=architecture == "bitnet-b1.58")
    info = PackedInfo("tensor", 64, "f16", "none", "stage")
    for tensor, optional in packed_tensors(parse_config(config, "toy"), info):
        if optional or tensor.name.endswith("_scale"):
            continue
        written = tensor_name(tensor.name, architecture)
        # The package knows these two by the names of an older model class.
        older = tensor.name.replace("self_attn.attn_sub_norm", "self_attn.inner_attn_ln")
        older = older.replace("mlp.ffn_sub_norm", "mlp.ffn_layernorm")
        assert written == known.get_name(older, try_suffixes=(".weight",)), tensor.name
        assert hf_name(written, architecture) == tensor.name


def test_rows_of_q_and_k_are_permuted_as_llama_cpp_permutes_them_and_back() -> None:
    rng = np.random.default_rng(0)
    heads, half = 3, 4
    rows = rng.integers(-1, 2, (heads * 2 * half, 5)).astype(np.int8)
    theirs = np.empty_like(rows)  # row by row: neighbours in GGUF are half a head apart in Hugging Face
    for head in range(heads):
        for row in range(half):
            theirs[head * 2 * half + 2 * row] = rows[head * 2 * half + row]
            theirs[head * 2 * half + 2 * row + 1] = rows[head * 2 * half + half + row]
    assert (rows_to_gguf(rows, heads) == theirs).all()
    for array in (rows, rows[:, 0], rows[:, :1].astype(np.float32)):
        assert (rows_from_gguf(rows_to_gguf(array, heads), heads) == array).all()
        assert rows_to_gguf(array, None) is array
    one = np.array([0.5], np.float32)
    assert rows_to_gguf(one, heads) is one
    config = config_of("llama")
    assert permuted_heads("model.layers.0.self_attn.k_proj", config, "llama") == 2
    assert permuted_heads("model.layers.0.self_attn.q_proj", config, "llama") == 4
    assert permuted_heads("model.layers.0.self_attn.v_proj", config, "llama") is None
    assert permuted_heads("model.layers.0.self_attn.q_proj", config, "qwen2") is None


@pytest.mark.parametrize(
    ("config", "subln", "expected"),
    [
        (config_of("llama"), True, "bitnet"),
        (config_of("mistral"), True, "bitnet"),
        (config_of("bitnet", hidden_act="silu"), False, "bitnet"),
        (config_of("llama", hidden_act="relu2"), True, "bitnet-b1.58"),
        *((config_of(name), subln, architecture) for name, (architecture, subln) in FAMILIES.items()),
    ],
)
def test_the_architecture_is_the_one_whose_graph_computes_the_model(
    config: dict[str, Any], subln: bool, expected: str
) -> None:
    assert architecture_for(config, subln, "toy").name == expected
    architecture, keys = to_gguf(config, subln)
    assert keys["general.architecture"] == architecture == expected
    assert keys[f"{expected}.rope.dimension_count"] == 16


@pytest.mark.parametrize(
    ("config", "subln", "why"),
    [
        (config_of("qwen3"), True, "qwen3: has no norm before o_proj"),
        (config_of("llama", hidden_act="relu2"), False, "computes silu, not relu2"),
        (config_of("llama", tie_word_embeddings=False), True, "has no output head of its own"),
        (config_of("llama", head_dim=32), True, "4 heads of 32 must make the hidden size 64"),
        (config_of("llama", rope_parameters=LLAMA3), True, "knows no llama3 scaling"),
        (config_of("qwen3", rope_parameters=LLAMA3), False, "knows no llama3 scaling"),
        (config_of("gemma3_text", query_pre_attn_scalar=32), False, "query_pre_attn_scalar: found 32"),
    ],
)
def test_what_no_graph_computes_is_refused(config: dict[str, Any], subln: bool, why: str) -> None:
    with pytest.raises(InputError, match=why):
        to_gguf(config, subln)


def test_rope_factors_are_what_transformers_divides_by() -> None:
    torch = pytest.importorskip("torch", reason="not checked: the divisors of llama3's rotary embedding")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = config_of("llama", head_dim=64, rope_parameters=LLAMA3)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](LlamaConfig(**{**config, "num_hidden_layers": 1}), torch.device("cpu"))
    plain = 500000.0 ** (-np.arange(32) / 32)
    ours = rope_factors(config)
    assert ours is not None
    np.testing.assert_allclose(plain / ours, theirs.numpy(), rtol=1e-6)
    assert ours[0] == 1.0
    assert ours[-1] == 32.0
    assert rope_factors(config_of("llama")) is None
