"""Toy converted models from a config and a seed: two layers of 64, the byte-level tokenizer of tests/artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizer_toys
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, save_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec

GROUPS = TernarySpec("group", 64)
_FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """Return an unconverted toy model in evaluation mode, with weights large enough to make logits differ."""
    torch.manual_seed(seed)
    config_class, model_class = _FAMILIES[family]
    settings: dict[str, Any] = {
        "vocab_size": 258, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "bos_token_id": 256, "eos_token_id": 257, "initializer_range": 0.2,
    }  # fmt: skip
    toy = model_class(config_class(**{**settings, **changes})).eval()
    with torch.no_grad():
        for name, parameter in toy.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return toy


def write(
    out: Path,
    family: str = "llama",
    spec: TernarySpec = GROUPS,
    subln: str = "none",
    dtype: torch.dtype = torch.float32,
    dlm: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a converted checkpoint directory and return it."""
    toy = model(family, **changes).to(dtype)
    sequences = torch.arange(64).reshape(2, 32)
    convert_model(toy, spec, subln=subln, sequences=sequences)  # type: ignore[arg-type]
    for _, layer in bit_linears(toy):
        # A fitted scale (as calibration leaves) beside absmean: both must survive.
        if layer.in_features == 160:
            layer.set_scale(layer.ternary()[1] * 1.25)
    tokenizer_toys.write(out.with_name(out.name + "-tokenizer"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out.with_name(out.name + "-tokenizer"))
    save_checkpoint(toy, tokenizer, out, CheckpointInfo("stage1_subln", spec=spec, subln=subln, dlm=dlm))
    return out
