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
    ``ffn_norm_before``: the linears that SubLN precedes (arXiv 2510.13998, section 3.1).
    """

    model_type: str
    linears: tuple[str, ...] = PROJECTIONS
    attention_norm_before: str = "o_proj"
    ffn_norm_before: str = "down_proj"


FAMILIES: dict[str, Family] = {name: Family(name) for name in ("llama", "mistral", "qwen2", "qwen3")}

# Known and refused, with the reason a user needs.
_REFUSED = {
    "phi3": "its q, k, v (and gate, up) projections are fused into one matrix",
    "gpt_neox": "its q, k, v projections are fused into one matrix",
    "falcon": "its q, k, v projections are fused into one matrix",
    "gpt2": "its projections are Conv1D layers with fused q, k, v",
    "qwen3_moe": "its experts are not plain linear layers",
    "mixtral": "its experts are not plain linear layers",
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
    return FAMILIES[model_type]
