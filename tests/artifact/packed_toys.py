"""A toy packed directory built from a seed with NumPy alone: random codes and scales, a byte-level tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizer_toys

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.files import json_bytes, sha256
from wrinklefree.artifact.manifest import TABLES, PackedInfo, packed_tensors
from wrinklefree.artifact.packing import pack_codes, pack_group_scales
from wrinklefree.artifact.safetensors_file import SafetensorsWriter, TensorInfo
from wrinklefree.artifact.tables import pack_table, quantize_table

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 258,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "eos_token_id": 257,
}
INFO = PackedInfo("group", 64, "q8", "identity", "stage1_subln")


def write(directory: Path, config: dict[str, Any] = CONFIG, info: PackedInfo = INFO, seed: int = 0) -> Path:
    """Write a whole packed directory and return it."""
    tokenizer_toys.write(directory)
    sizes = parse_config(config, "toy")
    rng = np.random.default_rng(seed)
    tensors = [tensor for tensor, optional in packed_tensors(sizes, info) if not optional]
    embedding = rng.standard_normal((sizes.vocab_size, sizes.hidden_size)).astype(np.float32) / 8
    with SafetensorsWriter(directory / "model.safetensors", tensors) as writer:
        for tensor in tensors:
            writer.write(tensor.name, _array(tensor, rng, sizes.linears(info.layout), info, embedding))
    info = replace(info, files={"model.safetensors": sha256(directory / "model.safetensors")})
    (directory / "config.json").write_bytes(json_bytes({**config, "wrinklefree": info.to_json()}))
    return directory


def _array(
    tensor: TensorInfo,
    rng: np.random.Generator,
    linears: dict[str, Any],
    info: PackedInfo,
    embedding: np.ndarray[Any, Any],
) -> np.ndarray[Any, Any]:
    owner, _, kind = tensor.name.rpartition(".")
    if owner in linears:
        rows, columns = linears[owner].rows, linears[owner].columns
        if kind == "weight":
            return pack_codes(rng.integers(-1, 2, (rows, columns)).astype(np.int8), info.layout)
        if info.granularity == "group":
            groups = -(-columns // info.group_size)
            return pack_group_scales((0.05 + 0.1 * rng.random((rows, groups))).astype(np.float16))
        return (0.05 + 0.1 * rng.random(tensor.shape)).astype(np.float32)
    if owner in TABLES:
        if info.embedding == "f16":
            return embedding.astype(np.float16)
        return pack_table(quantize_table(embedding, info.embedding))[0 if kind == "weight" else 1]
    return (1 + 0.1 * rng.standard_normal(tensor.shape)).astype(np.float32)
