"""A toy of every family we convert, each with what is peculiar to it: biases, QK-norm, windows, rope scaling, caps."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
    "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
_LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}

# Windows of 5 are shorter than the documents of the tests, so that ignoring one is seen.
FAMILY_TOYS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "tie_word_embeddings": True},
    "llama-bias": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False},
    "llama-rope-llama3": {"model_type": "llama", "rope_parameters": _LLAMA3},
    "llama-rope-linear": {"model_type": "llama", "rope_parameters": _LINEAR},
    "llama-rope-yarn": {"model_type": "llama", "rope_parameters": _YARN},
    "llama-head-dim": {"model_type": "llama", "head_dim": 16},
    "mistral": {"model_type": "mistral", "sliding_window": 5, "head_dim": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"model_type": "gemma", "head_dim": 16},
    "gemma2": {"model_type": "gemma2", "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16},
    "gemma3": {
        "model_type": "gemma3_text", "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "bitnet": {"model_type": "bitnet", "hidden_act": "relu2", "tie_word_embeddings": True},
}  # fmt: skip


def family_toy(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """An unconverted toy, its norms and biases away from their initial values."""
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**{**_SIZES, **FAMILY_TOYS[name], **changes}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    toy: nn.Module = model.eval()
    return toy


def documents(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words w0 to w95, one token each."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2", unk_token="w0")
