"""The model families we convert, declared: which linears become ternary, where SubLN sits, what is refused.

A family is named by the Hugging Face ``model_type``. A new family is one entry here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wrinklefree.errors import InputError, unknown_name

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """What conversion must know of one Hugging Face architecture.

    ``linears``: names of the layers, inside a decoder layer, that become ternary. ``attention_norm_before`` and
    ``ffn_norm_before``: the linears that SubLN precedes (arXiv 2510.13998, section 3.1). ``own_sub_norms``: the
    architecture has these two norms itself, under the names SubLN gives them; it gets no second ones.
    """

    model_type: str
    linears: tuple[str, ...] = PROJECTIONS
    attention_norm_before: str = "o_proj"
    ffn_norm_before: str = "down_proj"
    own_sub_norms: bool = False


# SmolLM2 is llama; the text models of Gemma 3 are gemma3_text; BitNet b1.58 2B4T is bitnet.
FAMILIES: dict[str, Family] = {
    **{name: Family(name) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")},
    "bitnet": Family("bitnet", own_sub_norms=True),
}

_FUSED = "its q, k, v projections are fused into one matrix"
_EXPERTS = "its experts are not plain linear layers"
# Known and refused, with the reason a user needs.
_REFUSED = {
    "phi3": "its q, k, v (and gate, up) projections are fused into one matrix",
    **dict.fromkeys(("gpt_neox", "falcon", "bloom", "mpt", "dbrx"), _FUSED),
    "gpt2": "its projections are Conv1D layers with fused q, k, v",
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "llama4", "phimoe"),
        _EXPERTS,
    ),
    "gemma3": "it reads images too; the text models of the family (gemma3_text) can be converted",
    "gemma3n": "its layers hold per-layer embeddings and routers beside the projections",
}


def family_of(config: Any) -> Family:
    """Return the family of a Hugging Face ``config``.

    Raises: InputError when the architecture cannot be converted, saying why.
    """
    model_type = getattr(config, "model_type", None) or "unknown"
    if model_type in _REFUSED:
        raise InputError(f"model_type {model_type!r} cannot be converted: {_REFUSED[model_type]}")
    if model_type not in FAMILIES:
        raise unknown_name("model_type", model_type, FAMILIES)
    if getattr(config, "use_bidirectional_attention", None):
        raise InputError(f"model_type {model_type!r} cannot be converted: its attention is not causal (an encoder)")
    return FAMILIES[model_type]


def default_subln(config: Any) -> str:
    """Return the SubLN a conversion for training starts with: identity, or none where the family has its own."""
    return "none" if family_of(config).own_sub_norms else "identity"
