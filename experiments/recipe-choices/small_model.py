"""A small LLaMA with random weights and a tokenizer of its own, both from a seed: what the CPU scale pretrains first.

The tokenizer is a byte-level BPE trained on Python's documentation without the held-out topics.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

END = "<|endoftext|>"


@dataclass(frozen=True)
class Shape:
    """Sizes of the model; ``vocabulary`` counts the end-of-text token."""

    hidden: int = 256
    intermediate: int = 768
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    vocabulary: int = 2048
    positions: int = 512
    seed: int = 0


def write_small_model(directory: Path, shape: Shape) -> None:
    """Write weights, config and tokenizer as a Hugging Face directory; it appears whole or not at all."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    partial = directory.with_name(f".{directory.name}.partial")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(shape.vocabulary), eos_token=END)
    torch.manual_seed(shape.seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.positions, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0,
        rms_norm_eps=1e-5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(directory)


def described(shape: Shape) -> dict[str, int]:
    return asdict(shape)


def _tokenizer(size: int):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from wrinklefree.data.python_docs import HELD_OUT_TOPICS, python_docs

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (document.text for document in python_docs() if document.id not in HELD_OUT_TOPICS)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
