"""What every Hugging Face directory of ours has in common: the class that computes the model, and its float tensors.

`for_transformers` gives the parts as a class of transformers can hold them. It changes a model in two ways that lose
nothing, and refuses, or with ``lossy`` changes, what would lose something:

- A Llama-like model with SubLN becomes ``model_type: bitnet``, whose class has these two norms.
- That class has one epsilon, SubLN has its own in each norm. With c = sqrt(eps / own eps), a norm of epsilon ``eps``
  over c x returns what one of its own epsilon returns over x; so the scales of ``v_proj``, or ``up_proj``, in whose
  outputs the norm's input is linear, are multiplied by c. That rounds a float32 scale in its last bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.config import ATTENTION_LINEARS, MLP_LINEARS, ModelConfig, parse_config
from wrinklefree.artifact.huggingface.floats import FloatType, holds, narrow
from wrinklefree.artifact.origin import HF_KEY, origin_of
from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart
from wrinklefree.errors import InputError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "bitnet": "BitNetForCausalLM",
}
_DTYPES: dict[str, FloatType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SUB_NORMS = {"attn_sub_norm": "v_proj", "ffn_sub_norm": "up_proj"}
# What becomes bitnet keeps these of its config.json; the rest belongs to the family it came from.
_BITNET_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "initializer_range", "rms_norm_eps", "use_cache", "pad_token_id",
    "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "rope_scaling", "rope_theta", "dtype",
    "torch_dtype",
)  # fmt: skip
# Settings of a quantised source, of code that is never run, and of the program that wrote it.
_DROPPED = ("quantization_config", "auto_map", "_name_or_path", "transformers_version", "torch_dtype", "wrinklefree")


def for_transformers(model: ModelParts) -> ModelParts:
    """Return the model as a class of transformers holds it: that class's config.json, biases where it has them.

    Raises: InputError when no class of transformers computes this model, naming the first part that has no place.
    """
    sizes = parse_config(model.config, model.place)
    config = {key: value for key, value in model.config.items() if key not in (*_DROPPED, HF_KEY)}
    parts = model.parts
    if not sizes.has_sub_norms and any(_is_sub_norm(part) for part in parts):
        config, parts = _as_bitnet(model, sizes, config)
    elif sizes.has_sub_norms:
        parts = one_epsilon(parts, sizes.rms_norm_eps)
    config["architectures"] = [ARCHITECTURES[str(config["model_type"])]]
    config["tie_word_embeddings"] = sizes.tie_word_embeddings
    config["dtype"] = model.config.get("dtype") or model.config.get("torch_dtype")
    given = {part.name.rpartition(".")[2] for part in parts if isinstance(part, TernaryPart) and part.bias is not None}
    config |= _bias_settings(str(config["model_type"]), given, model.place)
    biased = bias_layers(config)
    return replace(model, config=config, parts=tuple(_with_bias(part, biased) for part in parts))


def bias_layers(config: Mapping[str, Any]) -> set[str]:
    """Return the projections that have a bias in transformers' class of this ``config``."""
    if config["model_type"] == "qwen2":
        return {"q_proj", "k_proj", "v_proj"}
    if config["model_type"] == "mistral":
        return set()
    attention = ATTENTION_LINEARS if config.get("attention_bias") else ()
    return {*attention, *(MLP_LINEARS if config["model_type"] == "llama" and config.get("mlp_bias") else ())}


def float_tensors(model: ModelParts) -> Iterator[tuple[Part, str, NDArray[np.float32]]]:
    """Yield the tensors of tables, norms and biases under the names and with the values that transformers reads."""
    offset = np.float32(1 if str(model.config["model_type"]).startswith("gemma") else 0)
    for part in model.parts:
        if isinstance(part, TablePart):
            yield part, f"{part.name}.weight", part.read()
        elif isinstance(part, NormPart):
            weight = part.gains - offset if offset else part.gains
            if offset and not np.array_equal(weight + offset, part.gains):
                raise InputError(f"{part.name}: Gemma stores a gain less 1, and float32 does not hold that exactly")
            yield part, f"{part.name}.weight", weight
        elif part.bias is not None:
            yield part, f"{part.name}.bias", part.bias


def float_type(model: ModelParts, scales: Iterable[NDArray[np.float32]] = ()) -> FloatType:
    """Return the one type of everything that is not packed, in which transformers also computes.

    It is the 16 bits that the source says, where they hold every value and ``scales`` exactly, else float32. One type,
    because transformers leaves some tensors of a quantised model as they are stored and then cannot multiply them.
    """
    said = _DTYPES.get(str(model.config.get("dtype")))
    if said is None:
        return "F32"
    exact = all(holds(said, values) for _, _, values in float_tensors(model))
    return said if exact and all(holds(said, values) for values in scales) else "F32"


def config_json(model: ModelParts, dtype: FloatType) -> dict[str, Any]:
    """Return config.json without quantization_config."""
    names = {kind: name for name, kind in _DTYPES.items()}
    return {**model.config, "dtype": names[dtype], HF_KEY: origin_of(model.info)}


def narrowed(values: NDArray[np.float32], dtype: FloatType) -> NDArray[Any]:
    """Return float32 values as they stand in a file of type ``dtype``."""
    return narrow(np.ascontiguousarray(values), dtype)


def _is_sub_norm(part: Part) -> bool:
    return isinstance(part, NormPart) and part.name.endswith(tuple(SUB_NORMS))


def _as_bitnet(
    model: ModelParts, sizes: ModelConfig, config: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[Part, ...]]:
    first = next(part.name for part in model.parts if _is_sub_norm(part))
    why = None
    if sizes.has_qk_norm or sizes.has_sandwich_norms:
        why = f"no class of transformers has such a norm beside those of {sizes.model_type}"
    elif sizes.num_attention_heads * sizes.head_dim != sizes.hidden_size:
        why = f"transformers' BitNet has it over {sizes.hidden_size} features, here it is over " + str(
            sizes.num_attention_heads * sizes.head_dim
        )
    if why is not None:
        raise InputError(f"{first}: {why}; export it as packed, or convert with subln=none")
    kept = {key: config[key] for key in _BITNET_KEYS if key in config}
    context = {"max_position_embeddings": sizes.max_position_embeddings, "rms_norm_eps": sizes.rms_norm_eps}
    return {**kept, **context, "model_type": "bitnet"}, one_epsilon(model.parts, sizes.rms_norm_eps)


def one_epsilon(parts: tuple[Part, ...], eps: float) -> tuple[Part, ...]:
    """Return parts whose sub-layer norms have the epsilon ``eps``, with the scales that make it the same model."""
    factors: dict[str, float] = {}
    for part in parts:
        if isinstance(part, NormPart) and part.eps is not None and np.float32(part.eps) != np.float32(eps):
            if part.eps <= 0:
                raise InputError(
                    f"{part.name}: its epsilon is {part.eps}, transformers adds {eps}; export it as packed"
                )
            owner, _, norm = part.name.rpartition(".")
            factors[f"{owner}.{SUB_NORMS[norm]}"] = float(np.sqrt(np.float64(eps) / np.float64(part.eps)))
    return tuple(
        replace(part, eps=None)
        if isinstance(part, NormPart)
        else _scaled(part, factors[part.name])
        if isinstance(part, TernaryPart) and part.name in factors
        else part
        for part in parts
    )


def _scaled(part: TernaryPart, factor: float) -> TernaryPart:
    def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, scales = part.read()
        return codes, (scales.astype(np.float64) * factor).astype(np.float32)

    def times(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return (values.astype(np.float64) * factor).astype(np.float32)

    factors = None if part.factors is None else (times(part.factors[0]), part.factors[1])
    return replace(part, read=read, bias=None if part.bias is None else times(part.bias), factors=factors)


def _bias_settings(model_type: str, given: set[str], place: str) -> dict[str, bool]:
    """The settings that give transformers' class the biases the model has."""
    attention, mlp = given & set(ATTENTION_LINEARS), given & set(MLP_LINEARS)
    settings: dict[str, bool] = {}
    if model_type in ("llama", "qwen3", "gemma3_text", "bitnet"):
        settings["attention_bias"] = bool(attention)
    if model_type == "llama":
        settings["mlp_bias"] = bool(mlp)
    surplus = given - bias_layers({"model_type": model_type, **settings})
    if surplus:
        raise InputError(f"{place}: {min(surplus)} has a bias, transformers' {model_type} has none there")
    return settings


def _with_bias(part: Part, biased: set[str]) -> Part:
    """A layer that has a bias in transformers gets one of zeros when it has none."""
    if isinstance(part, TernaryPart) and part.bias is None and part.name.rpartition(".")[2] in biased:
        return replace(part, bias=np.zeros(part.shape[0], np.float32))
    return part
