"""Packed directories of toy size made from a config and a seed, one for each feature the engine must run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.artifact.packing import LAYOUT, Layout, PackedShape, pack_codes, pack_group_scales
from wrinklefree.artifact.safetensors_file import write_safetensors
from wrinklefree.artifact.tables import TableFormat, pack_table, quantize_table

BASE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "num_hidden_layers": 3,
    "head_dim": 24,
    "query_pre_attn_scalar": 20,
    "sliding_window": 24,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    },
}
# name -> (changes to BASE, granularity, group_size, options of write_toy)
TOYS: dict[str, tuple[dict[str, Any], str, int, dict[str, Any]]] = {
    "llama_tensor": ({}, "tensor", 64, {}),
    "llama_row_odd_sizes": ({"hidden_size": 72, "num_attention_heads": 6, "intermediate_size": 150}, "row", 64, {}),
    "llama_group_64": ({"intermediate_size": 330}, "group", 64, {}),
    "llama_group_128": ({"intermediate_size": 330}, "group", 128, {}),
    "llama_group_256": ({"intermediate_size": 330}, "group", 256, {}),
    "llama3_rope_untied": ({"rope_parameters": LLAMA3, "tie_word_embeddings": False}, "row", 64, {}),
    "linear_rope_f16_head": (
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
        "tensor",
        64,
        {"embedding": "f16"},
    ),
    "untied_f16_head": ({"tie_word_embeddings": False}, "tensor", 64, {"embedding": "f16"}),
    "q6_head": ({"hidden_size": 72, "num_attention_heads": 6}, "row", 64, {"embedding": "q6"}),
    "untied_q4_head": ({"tie_word_embeddings": False, "vocab_size": 251}, "tensor", 64, {"embedding": "q4"}),
    "dense_row": ({"intermediate_size": 400}, "row", 64, {"layout": "t1.6-r16c64"}),
    "dense_group_128": ({"intermediate_size": 330}, "group", 128, {"layout": "t1.6-r16c64"}),
    "bias_everywhere": ({"attention_bias": True, "mlp_bias": True}, "tensor", 64, {}),
    "qwen2": ({"model_type": "qwen2", "vocab_size": 251}, "row", 64, {}),
    "qwen3": ({"model_type": "qwen3", "head_dim": 32, "num_key_value_heads": 1}, "group", 64, {}),
    "bitnet": ({"model_type": "bitnet", "hidden_act": "relu2"}, "tensor", 64, {"subln": "ones"}),
    "subln": ({}, "group", 64, {"subln": "identity"}),
    "low_rank": ({"intermediate_size": 150}, "group", 64, {"low_rank": 5}),
    "low_rank_subln_bias": (
        {"attention_bias": True, "mlp_bias": True, "hidden_size": 72, "num_attention_heads": 6},
        "row",
        64,
        {"low_rank": 17, "subln": "identity"},
    ),
    "gemma3": (GEMMA3, "row", 64, {}),
    "gemma3_subln": ({**GEMMA3, "hidden_size": 72, "num_attention_heads": 6}, "group", 64, {"subln": "identity"}),
    "mistral_window": ({"model_type": "mistral", "sliding_window": 24}, "tensor", 64, {}),
}


def toy_config(name: str) -> dict[str, Any]:
    """The config.json content of a toy without its ``wrinklefree`` object."""
    return {**BASE, **TOYS[name][0]}


def make_toy(directory: Path, name: str, seed: int = 0) -> Path:
    """Write the toy ``name`` and return its directory."""
    changes, granularity, group_size, options = TOYS[name]
    return write_toy(directory, {**BASE, **changes}, granularity, group_size, seed, **options)


def write_toy(
    directory: Path,
    config: dict[str, Any],
    granularity: str,
    group_size: int,
    seed: int,
    embedding: TableFormat = "q8",
    subln: str = "none",
    layout: Layout = LAYOUT,
    low_rank: int = 0,
    equal: tuple[int, int] | None = None,
) -> Path:
    """Write a packed directory with random weights.

    Logits have a spread of about one; the layers outweigh the embedding, so that greedy text does not soon repeat.
    ``equal``: two tokens of one large embedding, so that their logits are the best or the worst, and equal.
    ``low_rank``: the largest rank of the linears' corrections; theirs differ, and o_proj of the last layer has none.
    """
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    ranks: dict[str, int] = {}
    hidden, middle = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads

    def table(name: str) -> None:
        weight = rng.normal(size=(config["vocab_size"], hidden)).astype(np.float32) / np.float32(np.sqrt(hidden))
        if equal:
            weight[equal[0]] = weight[equal[1]] = 3 * weight[equal[1]]
        if embedding == "f16":
            tensors[name + ".weight"] = weight.astype(np.float16)
        else:
            tensors[name + ".weight"], tensors[name + ".weight_scale"] = pack_table(quantize_table(weight, embedding))

    def linear(name: str, rows: int, columns: int, bias: bool) -> None:
        tensors[name + ".weight"] = pack_codes(rng.integers(-1, 2, (rows, columns)).astype(np.int8), layout)
        shape = {"tensor": (1,), "row": (rows,), "group": (rows, -(-columns // group_size))}[granularity]
        scale = (rng.uniform(0.7, 1.3, shape) * np.sqrt(13.5 / columns)).astype(np.float32)
        stored = pack_group_scales(scale.astype(np.float16)) if granularity == "group" else scale
        assert stored.shape == PackedShape(rows, columns).scales(granularity, group_size)  # type: ignore[arg-type]
        tensors[name + ".weight_scale"] = stored
        if bias:
            tensors[name + ".bias"] = rng.normal(size=rows).astype(np.float32)
        if low_rank and name != f"model.layers.{config['num_hidden_layers'] - 1}.self_attn.o_proj":
            rank = ranks[name] = low_rank - len(ranks) % min(4, low_rank)
            for suffix, shape in (("u", (rows, rank)), ("v", (rank, columns))):
                factor = rng.normal(size=shape) / np.sqrt(shape[1])
                tensors[f"{name}.low_rank_{suffix}"] = factor.astype(np.float16)

    def norm(name: str, size: int) -> None:
        tensors[name + ".weight"] = rng.uniform(0.5, 1.5, size).astype(np.float32)

    table("model.embed_tokens")
    if not config["tie_word_embeddings"]:
        table("lm_head")
    norm("model.norm", hidden)
    attention_bias, mlp_bias = config.get("attention_bias", False), config.get("mlp_bias", False)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        qkv_bias = attention_bias or config["model_type"] == "qwen2"
        linear(prefix + "self_attn.q_proj", heads * head_dim, hidden, qkv_bias)
        linear(prefix + "self_attn.k_proj", kv_heads * head_dim, hidden, qkv_bias)
        linear(prefix + "self_attn.v_proj", kv_heads * head_dim, hidden, qkv_bias)
        linear(prefix + "self_attn.o_proj", hidden, heads * head_dim, attention_bias)
        linear(prefix + "mlp.gate_proj", middle, hidden, mlp_bias)
        linear(prefix + "mlp.up_proj", middle, hidden, mlp_bias)
        linear(prefix + "mlp.down_proj", hidden, middle, mlp_bias)
        norm(prefix + "input_layernorm", hidden)
        norm(prefix + "post_attention_layernorm", hidden)
        if config["model_type"] == "gemma3_text":
            norm(prefix + "pre_feedforward_layernorm", hidden)
            norm(prefix + "post_feedforward_layernorm", hidden)
            for name in ("post_attention_layernorm", "post_feedforward_layernorm"):  # embeddings are scaled up
                tensors[f"{prefix}{name}.weight"] *= np.float32(2 * np.sqrt(hidden))
        if config["model_type"] in ("qwen3", "gemma3_text"):
            norm(prefix + "self_attn.q_norm", head_dim)
            norm(prefix + "self_attn.k_norm", head_dim)
        if subln != "none":
            norm(prefix + "self_attn.attn_sub_norm", heads * head_dim)
            norm(prefix + "mlp.ffn_sub_norm", middle)
            if config["model_type"] != "bitnet":
                # An epsilon of its own, as large as the inputs, for one of the two: the other takes the model's.
                tensors[prefix + "mlp.ffn_sub_norm.eps"] = np.array([0.5], np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors)
    packing = {
        "format": "packed",
        "format_version": 1,
        "layout": layout,
        "granularity": granularity,
        "group_size": group_size,
        "embedding": embedding,
        "subln": subln,
        "stage": "toy",
        "dlm": None,
        **({"low_rank": ranks} if ranks else {}),
    }
    (directory / "config.json").write_text(json.dumps({**config, "wrinklefree": packing}))
    return directory


def add_tokenizer(directory: Path, vocab_size: int = 256) -> None:
    """Give a toy a tokenizer: id 0 ends a text, 1 begins it, 2-199 are pairs of letters, 200-255 bytes of UTF-8.

    Byte tokens stand for 0xC2, 0xE2, 0xF0 and 0x80-0xB4, so that a character may need up to four of them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    letters = "abcdefghijklmnopqrstuvwxyz"
    vocab = {"</s>": 0, "<s>": 1}
    vocab |= {letters[i // 26] + letters[i % 26]: 2 + i for i in range(198)}
    octets = [0xC2, 0xE2, 0xF0, *range(0x80, 0xB5)]
    vocab |= {f"<0x{octet:02X}>": 200 + i for i, octet in enumerate(octets)}
    tokenizer = Tokenizer(models.WordLevel({t: i for t, i in vocab.items() if i < vocab_size}, unk_token="aa"))
    tokenizer.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<s>", special=True)])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>", "bos_token": "<s>", "add_bos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
