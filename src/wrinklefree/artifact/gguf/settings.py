"""The settings of a model as Hugging Face's config.json states them and as GGUF's keys do, both ways.

GGUF keeps numbers in float32 and the scaling of llama3's rotary embedding as divisors of its frequencies, in a tensor;
both come back as what they were.

Source: llama.cpp, src/llama-arch.cpp (keys), llama_model_base::load_hparams (defaults), conversion/base.py and
conversion/llama.py (`generate_extra_tensors`), src/models/gemma3.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import Rope, parse_config
from wrinklefree.artifact.gguf.architectures import ARCHITECTURES, Architecture, architecture_for
from wrinklefree.artifact.gguf.container import GgufFile
from wrinklefree.artifact.gguf.names import ROPE_FACTORS
from wrinklefree.errors import FormatError, InputError, unknown_name

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "bitnet": "BitNetForCausalLM",
}
_TOKEN_IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_GEMMA_PERIOD = 6  # every so many layers one sees all, where a file does not say
_GEMMA_LARGEST = 62  # layers of the 27B, whose attention is scaled by the hidden size over the heads
# What published models use; the divisors alone do not always tell the settings apart.
_LLAMA3 = (
    {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
)


def to_gguf(config: Mapping[str, Any], subln: bool = False, place: str = "config.json") -> tuple[str, dict[str, Any]]:
    """Return the architecture and its keys, ``general.architecture`` first, for a Hugging Face ``config``.

    What is beyond keys: `rope_factors`, and biases, which are tensors only.

    Raises: InputError naming what no architecture computes; FormatError when ``config`` is none of ours.
    """
    architecture = architecture_for(config, subln, place).name
    sizes = parse_config(config, place)
    values: dict[str, Any] = {
        "vocab_size": sizes.vocab_size,
        "context_length": sizes.max_position_embeddings,
        "embedding_length": sizes.hidden_size,
        "block_count": sizes.num_hidden_layers,
        "feed_forward_length": sizes.intermediate_size,
        "attention.head_count": sizes.num_attention_heads,
        "attention.head_count_kv": sizes.num_key_value_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "attention.layer_norm_rms_epsilon": sizes.rms_norm_eps,
        "rope.dimension_count": sizes.head_dim,
        "rope.freq_base": sizes.rope.theta,
    }
    if sizes.rope.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": sizes.rope.factor}
    if sizes.model_type == "gemma3_text":
        values |= _gemma_keys(config, sizes.num_attention_heads, place)
    keys = {f"{architecture}.{key}": value for key, value in values.items()}
    return architecture, {"general.architecture": architecture, **keys}


def rope_factors(config: Mapping[str, Any], place: str = "config.json") -> NDArray[np.float32] | None:
    """Return the divisors of the rotary frequencies, float32 ``[head_dim / 2]`` (``rope_freqs.weight``), or None.

    Source: arXiv 2407.21783's models; llama.cpp, conversion/llama.py.
    """
    sizes = parse_config(config, place)
    return _factors(sizes.rope, sizes.head_dim) if sizes.rope.kind == "llama3" else None


def from_gguf(file: GgufFile, subln: bool = False) -> dict[str, Any]:
    """Return the Hugging Face config of a file of an architecture of ours, with every key our readers need.

    ``subln``: its norms before o_proj and down_proj are SubLN's in a llama model, not a bitnet's own.

    Raises: FormatError naming the key that is missing or that we cannot run.
    """
    architecture = known_architecture(file)
    prefix = architecture.name
    heads = file.size(f"{prefix}.attention.head_count", 1 << 12, least=1)
    hidden = file.size(f"{prefix}.embedding_length", 1 << 18, least=1)
    head_dim = file.size(f"{prefix}.attention.key_length", 1 << 12, default=hidden // heads, least=1)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (found := file.size(f"{prefix}.{key}", 1 << 12, default=head_dim, least=1)) != head_dim:
            raise FormatError(f"{file.path}: {prefix}.{key}: found {found}, heads are of size {head_dim}")
    model_type = "llama" if subln and architecture.sub_norms else architecture.model_types[0]
    config: dict[str, Any] = {
        "architectures": [_CLASSES[model_type]],
        "model_type": model_type,
        "vocab_size": _vocabulary(file, prefix),
        "hidden_size": hidden,
        "intermediate_size": file.size(f"{prefix}.feed_forward_length", 1 << 20, least=1),
        "num_hidden_layers": file.size(f"{prefix}.block_count", 1 << 12, least=1),
        "num_attention_heads": heads,
        "num_key_value_heads": file.size(f"{prefix}.attention.head_count_kv", heads, default=heads, least=1),
        "head_dim": head_dim,
        "rms_norm_eps": _decimal(_number(file, f"{prefix}.attention.layer_norm_rms_epsilon", 1e-12, 1.0)),
        "hidden_act": architecture.activation,
        "max_position_embeddings": file.size(f"{prefix}.context_length", 1 << 27, least=1),
        "tie_word_embeddings": architecture.tied or "output.weight" not in file.tensors,
        "rope_parameters": _rope(file, prefix, head_dim),
    }
    if model_type != "qwen2":  # whose class has three biases, always
        config["attention_bias"] = _any_bias(file, ("attn_q", "attn_k", "attn_v", "attn_output"))
    if model_type == "llama":
        config["mlp_bias"] = _any_bias(file, ("ffn_gate", "ffn_up", "ffn_down"))
    if prefix == "gemma3":
        config |= _gemma_config(file, config)
        del config["hidden_act"]
    for ours, theirs in _TOKEN_IDS.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        if key in file.metadata:
            config[ours] = file.size(key, 1 << 24, least=0)
    return config


def known_architecture(file: GgufFile) -> Architecture:
    """Return the architecture of a file. Raises: FormatError when it is none of ours."""
    if file.architecture not in ARCHITECTURES:
        wrong = unknown_name("GGUF architecture", file.architecture, ARCHITECTURES)
        raise FormatError(f"{file.path}: {wrong}")
    return ARCHITECTURES[file.architecture]


def _any_bias(file: GgufFile, names: tuple[str, ...]) -> bool:
    return any(name.startswith("blk.") and name.endswith(tuple(f".{n}.bias" for n in names)) for name in file.tensors)


def _number(file: GgufFile, key: str, least: float, most: float, default: float | None = None) -> float:
    value = file.number(key) if default is None else file.number(key, default)
    if not least <= value <= most:
        raise FormatError(f"{file.path}: {key}: found {value!r}, a number from {least} to {most} is needed")
    return value


def _decimal(value: float) -> float:
    """Return the shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _vocabulary(file: GgufFile, prefix: str) -> int:
    """The rows of the embedding; the key is optional, and some converters leave the padding of the table out of it."""
    table = file.tensors.get("token_embd.weight")
    if table is None or len(table.shape) != 2:
        raise FormatError(f"{file.path}: token_embd.weight: a table of the vocabulary is needed")
    stated = file.size(f"{prefix}.vocab_size", 1 << 24, default=table.shape[0], least=1)
    if stated > table.shape[0]:
        raise FormatError(
            f"{file.path}: {prefix}.vocab_size: found {stated}, token_embd.weight has {table.shape[0]} rows"
        )
    return table.shape[0]


def _rope(file: GgufFile, prefix: str, head_dim: int) -> dict[str, Any]:
    theta = _decimal(_number(file, f"{prefix}.rope.freq_base", 1.0, 1e12, 10000.0))
    # As llama.cpp reads it: without a type a factor is a linear one, the older key says the same, none or 0 is 1.
    kind = file.text(f"{prefix}.rope.scaling.type", default="linear")
    older = _number(file, f"{prefix}.rope.scale_linear", 0.0, 1e6, 0.0)
    factor = _decimal(_number(file, f"{prefix}.rope.scaling.factor", 0.0, 1e6, older)) or 1.0
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if kind not in ("none", "linear") and (kind != "yarn" or factor != 1.0):
        key = f"{prefix}.rope.scaling.type"
        raise FormatError(f"{file.path}: {key}: found {kind!r}, none and linear are read (and llama3's, a tensor)")
    if kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if ROPE_FACTORS in file.tensors and ARCHITECTURES[prefix].rope_factors:
        rope = _llama3(file, rope, head_dim)
    return rope


def _llama3(file: GgufFile, rope: dict[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the settings whose divisors are those of ``rope_freqs.weight``."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.type.name != "F32" or tensor.shape != (head_dim // 2,):
        raise FormatError(
            f"{file.path}: {ROPE_FACTORS}: found {tensor.type.name} {list(tensor.shape)}, F32 {[head_dim // 2]} is "
            "needed"
        )
    found = np.frombuffer(file.data(ROPE_FACTORS).tobytes(), "<f4")
    if (found == 1.0).all():
        return rope
    if not np.isfinite(found).all() or rope["rope_type"] != "default" or found.min() < 1.0:
        raise FormatError(f"{file.path}: {ROPE_FACTORS}: these are no divisors of llama3's rotary embedding")
    theta = rope["rope_theta"]
    for settings in (*_LLAMA3, *_solved(found.astype(np.float64), theta)):
        given = Rope(theta, "llama3", *settings.values())
        if np.allclose(_factors(given, head_dim), found, rtol=1e-6, atol=0):
            return {"rope_type": "llama3", "rope_theta": theta, **settings}
    raise FormatError(f"{file.path}: {ROPE_FACTORS}: no settings of llama3's rotary embedding give these divisors")


def _solved(found: NDArray[np.float64], theta: float) -> list[dict[str, Any]]:
    """Return settings that may give these divisors; 8192 positions are assumed, because only ratios matter.

    Between the two bounds, 1 / divisor = (1 - s) / factor + s, where s is linear in the frequency:
    s = (8192 f / 2 pi - low) / (high - low).
    """
    factor, original = float(found.max()), 8192
    frequencies = theta ** (-np.arange(len(found)) / len(found))
    turns = original * frequencies / (2 * math.pi)
    middle = (found > 1) & (found < factor)
    solved = []
    if middle.sum() >= 2:
        smooth = (1 / found[middle] - 1 / factor) / (1 - 1 / factor)
        ends, values = turns[middle][[0, -1]], smooth[[0, -1]]  # two points of a straight line
        if ends[0] > ends[1] and values[0] > values[1]:
            slope = (values[0] - values[1]) / (ends[0] - ends[1])
            low, high = ends[1] - values[1] / slope, ends[1] + (1 - values[1]) / slope
            solved = [(round(low, digits), round(high, digits)) for digits in (0, 1, 2, 3, 6)]
    elif (found > 1).any() and (found == 1).any() and not middle.any():
        # Nothing between the bounds: any two that lie between the same neighbours do the same.
        below, above = turns[found > 1].max(), turns[found == 1].min()
        solved = [(below + (above - below) / 3, below + 2 * (above - below) / 3)]
    return [
        {
            "factor": _decimal(factor),
            "low_freq_factor": float(low),
            "high_freq_factor": float(high),
            "original_max_position_embeddings": original,
        }
        for low, high in solved
        if 0 < low < high
    ]


def _factors(rope: Rope, head_dim: int) -> NDArray[np.float32]:
    frequencies = (1.0 / np.float32(rope.theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)).astype(
        np.float32
    )
    turns = rope.original_max_position_embeddings * frequencies.astype(np.float64) / (2 * math.pi)
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    between = 1 / ((1 - smooth.clip(0, 1)) / rope.factor + smooth.clip(0, 1))
    whole = np.where(turns > rope.high_freq_factor, 1.0, np.where(turns < rope.low_freq_factor, rope.factor, between))
    return whole.astype(np.float32)


def _gemma_keys(config: Mapping[str, Any], heads: int, place: str) -> dict[str, Any]:
    """What Gemma 3 has beyond a llama: windows, and a second rotary embedding within them."""
    sliding = config["rope_parameters"]["sliding_attention"]
    if (sliding.get("rope_type") or "default") != "default":
        raise InputError(f"{place}: no GGUF architecture scales the rotary embedding of windowed layers")
    layers, kinds = config["num_hidden_layers"], config["layer_types"]
    scale = config["query_pre_attn_scalar"]
    wanted = config["hidden_size"] // heads if layers == _GEMMA_LARGEST else config["head_dim"]
    if scale != wanted:
        raise InputError(f"{place}: query_pre_attn_scalar: found {scale}, GGUF's gemma3 takes {wanted} for this model")
    windowed = [kind == "sliding_attention" for kind in kinds]
    periods = (_GEMMA_PERIOD, *range(layers + 2))
    period = next((n for n in periods if windowed == _windowed(n, layers)), None)
    return {
        "attention.sliding_window": config["sliding_window"],
        "attention.sliding_window_pattern": np.array(windowed) if period is None else period,
        "rope.freq_base_swa": float(sliding["rope_theta"]),
    }


def _gemma_config(file: GgufFile, config: Mapping[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    window = file.size("gemma3.attention.sliding_window", 1 << 24, default=0, least=0)
    key = "gemma3.attention.sliding_window_pattern"
    if not window:
        windowed = [False] * layers
    elif isinstance(file.metadata.get(key), np.ndarray):
        windowed = [bool(value) for value in file.numbers(key)]
        if len(windowed) < layers:
            raise FormatError(f"{file.path}: {key}: found {len(windowed)} entries for {layers} layers")
        windowed = windowed[:layers]
    else:
        windowed = _windowed(file.size(key, 1 << 12, default=_GEMMA_PERIOD, least=0), layers)
    if _number(file, "gemma3.final_logit_softcapping", 0.0, 1e9, 0.0):
        raise FormatError(f"{file.path}: gemma3.final_logit_softcapping: no engine of ours computes it")
    full = config["rope_parameters"]
    theta = _decimal(_number(file, "gemma3.rope.freq_base_swa", 1.0, 1e12, 10000.0)) if window else 10000.0
    heads = config["num_attention_heads"]
    largest = layers == _GEMMA_LARGEST
    return {
        "hidden_activation": config["hidden_act"],
        "query_pre_attn_scalar": config["hidden_size"] // heads if largest else config["head_dim"],
        "sliding_window": window or config["max_position_embeddings"],
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in windowed],
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": theta},
        },
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _windowed(period: int, layers: int) -> list[bool]:
    """Which layers see a window only when one in ``period`` sees all; 0 means that none does."""
    return [period == 0 or layer % period < period - 1 for layer in range(layers)]
