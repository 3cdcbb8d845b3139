"""Hugging Face's names of tensors and GGUF's, both ways, and the order of the rows of q and k.

A name here is a module's (``model.layers.0.self_attn.q_proj``) or a tensor's (with ``.weight`` or another suffix);
the suffix is carried over. What an architecture computes is in `architectures`, its settings are in `settings`.

Source: llama.cpp, src/llama-arch.cpp (names) and conversion/llama.py (`permute`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.gguf.architectures import ARCHITECTURES
from wrinklefree.errors import InputError

SUFFIXES = ("weight", "bias", "scale")
ROPE_FACTORS = "rope_freqs.weight"

_WHOLE = {"model.embed_tokens": "token_embd", "lm_head": "output", "model.norm": "output_norm"}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm",
    "post_attention_layernorm": "ffn_norm",
}
# Gemma norms what attention and MLP return; there `post_attention_layernorm` is that norm.
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER_NAME = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)")
_BLOCK_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)")


def tensor_name(hf_name: str, architecture: str) -> str:
    """Return GGUF's name of a module or tensor of Hugging Face.

    Raises: InputError for a name that no architecture of ours has.
    """
    module, suffix = _split(hf_name)
    if module in _WHOLE:
        return _WHOLE[module] + suffix
    found = _LAYER_NAME.fullmatch(module)
    inner = _layer_names(architecture).get(found[2]) if found else None
    if found is None or inner is None:
        raise InputError(f"{hf_name}: the GGUF architecture {architecture} has no place for it")
    return f"blk.{found[1]}.{inner}{suffix}"


def hf_name(name: str, architecture: str) -> str | None:
    """Return Hugging Face's name of a module or tensor of GGUF, None for one that is no part of a model of ours."""
    module, suffix = _split(name)
    for ours, theirs in _WHOLE.items():
        if module == theirs:
            return ours + suffix
    found = _BLOCK_NAME.fullmatch(module)
    if found is None:
        return None
    for ours, theirs in _layer_names(architecture).items():
        if found[2] == theirs:
            return f"model.layers.{found[1]}.{ours}{suffix}"
    return None


def permuted_heads(module: str, config: Mapping[str, Any], architecture: str) -> int | None:
    """Return the number of heads whose rows GGUF has in another order for this module, None where it has not."""
    if not ARCHITECTURES[architecture].permuted:
        return None
    heads: int = config["num_attention_heads"]
    if module.endswith(".q_proj"):
        return heads
    return (config.get("num_key_value_heads") or heads) if module.endswith(".k_proj") else None


def rows_to_gguf(rows: NDArray[Any], heads: int | None) -> NDArray[Any]:
    """Return codes, scales per row ``[O, ..]`` or a bias ``[O]`` of q or k in GGUF's order of rows.

    Hugging Face rotates row i of a head with row i + half; ``llama`` rotates neighbours, so 0, half, 1, half + 1, ...
    A scale for the whole tensor ``[1]``, and ``heads`` None, change nothing.
    """
    return rows if heads is None or len(rows) == 1 else _swapped(rows, heads, 2, -1)


def rows_from_gguf(rows: NDArray[Any], heads: int | None) -> NDArray[Any]:
    """Return the inverse of `rows_to_gguf`."""
    return rows if heads is None or len(rows) == 1 else _swapped(rows, heads, -1, 2)


def _swapped(rows: NDArray[Any], heads: int, first: int, second: int) -> NDArray[Any]:
    if len(rows) % (2 * heads):
        raise InputError(f"{len(rows)} rows are no even number for each of {heads} heads")
    parts = rows.reshape(heads, first, second, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(rows.shape)


def _split(name: str) -> tuple[str, str]:
    module, dot, suffix = name.rpartition(".")
    return (module, f".{suffix}") if dot and suffix in SUFFIXES else (name, "")


def _layer_names(architecture: str) -> dict[str, str]:
    return {**_LAYER, **_SANDWICH} if architecture == "gemma3" else _LAYER
