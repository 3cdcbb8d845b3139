"""Toy models in memory, and GGUF files of them that the `gguf` package writes, as a foreign program would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import packed_toys
from gguf import MODEL_ARCH, GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.quants import quantize
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.manifest import TABLES, PackedInfo, packed_tensors
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "vocab_size": 259, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 128,
}  # fmt: skip
# Hugging Face's family -> the package's tables and the name of the architecture.
FOREIGN = {
    "llama": (MODEL_ARCH.LLAMA, "llama"),
    "mistral": (MODEL_ARCH.LLAMA, "llama"),
    "qwen2": (MODEL_ARCH.QWEN2, "qwen2"),
    "qwen3": (MODEL_ARCH.QWEN3, "qwen3"),
    "gemma3_text": (MODEL_ARCH.GEMMA3, "gemma3"),
    "bitnet": (MODEL_ARCH.BITNET, "bitnet"),
}
_OLDER = {"self_attn.attn_sub_norm": "self_attn.inner_attn_ln", "mlp.ffn_sub_norm": "mlp.ffn_layernorm"}


@dataclass
class Changes:
    """What a file gets beside or instead of what belongs into it; None leaves a tensor or key out."""

    tensors: Mapping[str, NDArray[Any] | None] = field(default_factory=dict)
    keys: Mapping[str, Any] = field(default_factory=dict)


def toy_config(model_type: str, **changes: Any) -> dict[str, Any]:
    """Return a config of whole blocks of 256 weights in every row."""
    config = {**packed_toys.CONFIG, **SIZES, "model_type": model_type, **changes}
    if model_type != "gemma3_text":
        return config
    del config["hidden_act"]
    return config | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 64,
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * config["num_hidden_layers"],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }


def toy_parts(
    config: dict[str, Any],
    granularity: Any = "tensor",
    subln: str = "none",
    biases: tuple[str, ...] = (),
    seed: int = 0,
) -> ModelParts:
    """Return a model of random codes with float16 scales, in groups of 256 where they are for groups."""
    sizes, rng = parse_config(config, "toy"), np.random.default_rng(seed)
    info = PackedInfo(granularity, 256, "f16", subln, "imported")
    linears, parts = sizes.linears(), list[Part]()

    def halves(shape: tuple[int, ...], size: float = 1 / 16) -> NDArray[np.float32]:
        return (size * (1 + rng.integers(0, 64, shape) / 64)).astype(np.float32)  # exact in F16 and in BF16

    for tensor, _ in packed_tensors(sizes, info):
        module, _, kind = tensor.name.rpartition(".")
        if kind != "weight":
            continue
        if module in linears:
            rows, columns = linears[module].rows, linears[module].columns
            codes = rng.integers(-1, 2, (rows, columns)).astype(np.int8)
            codes[:, 0] = 1  # so that each row shows its scale
            shapes = {"tensor": (1,), "row": (rows,), "group": (rows, columns // 256)}
            scales = halves(shapes[granularity])
            bias = halves((rows,)) if module.endswith(biases) and biases else None
            parts.append(TernaryPart(module, (rows, columns), _given(codes, scales), bias))
        elif module in TABLES:
            table = halves(tensor.shape) * rng.choice([-1, 1], tensor.shape).astype(np.float32)
            parts.append(TablePart(module, (tensor.shape[0], tensor.shape[1]), _given(table)))
        else:
            parts.append(NormPart(module, halves(tensor.shape, 0.5)))
    return ModelParts("toy", config, info, tuple(parts))


def write_foreign(path: Path, model: ModelParts, kind: str = "TQ2_0", changes: Changes | None = None) -> Path:
    """Write ``model`` with the package's writer, tables of names and quantisers, and return the path."""
    changes, config = changes or Changes(), model.config
    package, architecture = FOREIGN["bitnet" if model.info.subln != "none" else config["model_type"]]
    writer = GGUFWriter(path, architecture)
    for key, value in {**_keys(config, architecture), **changes.keys}.items():
        if value is not None:
            _add(writer, key, value)
    names = get_tensor_name_map(package, config["num_hidden_layers"])
    left = dict(changes.tensors)
    for name, values in _weights(model, architecture):
        for ours, older in _OLDER.items():
            name = name.replace(ours, older)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert theirs is not None
        values = left.pop(theirs, values)  # type: ignore[assignment]
        if values is not None:
            quantised = "_proj.weight" in name and values.ndim == 2
            _tensor(writer, theirs, values, kind if quantised else "F16" if values.ndim == 2 else "F32")
    for name, extra in left.items():
        if extra is not None:
            writer.add_tensor(name, extra)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _given(*arrays: NDArray[Any]) -> Callable[[], Any]:
    return lambda: arrays if len(arrays) > 1 else arrays[0]


def _tensor(writer: GGUFWriter, name: str, values: NDArray[Any], kind: str) -> None:
    package = GGMLQuantizationType[kind]
    if kind in ("F32", "F16"):
        writer.add_tensor(name, values.astype(np.float32 if kind == "F32" else np.float16))
    else:
        writer.add_tensor(name, quantize(values, package), raw_dtype=package)


def _weights(model: ModelParts, architecture: str) -> list[tuple[str, NDArray[np.float32]]]:
    """Names and numbers as Hugging Face has them, but for the rows of llama's q and k."""
    config, found = model.config, []
    for part in model.parts:
        if isinstance(part, NormPart):
            found.append((f"{part.name}.weight", part.gains))
        elif isinstance(part, TablePart):
            found.append((f"{part.name}.weight", part.read()))
        else:
            codes, scales = part.codes_and_scales()
            wide = scales[:, None] if scales.ndim == 1 else np.repeat(scales, 256, axis=1)
            weights = codes * wide
            for suffix, values in (("weight", weights), ("bias", part.bias)):
                if values is not None:
                    if architecture == "llama" and part.name.endswith(("q_proj", "k_proj")):
                        heads = config["num_attention_heads" if "q_proj" in part.name else "num_key_value_heads"]
                        # conversion/llama.py of llama.cpp: halves of a head become neighbours.
                        values = values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
                    found.append((f"{part.name}.{suffix}", values))
    return found


def _keys(config: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    rope = config["rope_parameters"]
    keys = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": rope.get("full_attention", rope)["rope_theta"],
    }
    if architecture == "gemma3":
        keys["attention.sliding_window"] = config["sliding_window"]
        keys["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": [*alphabet, "th", "<s>", "</s>"],
        "token_type": [1] * 257 + [3, 3],
        "merges": ["t h"],
        "bos_token_id": 257,
        "eos_token_id": 258,
    }
    return {
        **{f"{architecture}.{key}": value for key, value in keys.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    adders.get(type(value), writer.add_array)(key, value)
