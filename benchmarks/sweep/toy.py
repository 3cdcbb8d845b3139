"""A toy model, its tokenizer and texts, in a directory: what the trials of training.yaml train on.

Texts are the help topics of the Python that runs this; the model has random weights of a fixed seed.
"""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

VOCABULARY = 512


def write_toy(directory: Path) -> None:
    """Write ``model`` and ``texts`` into ``directory``, unless they are there."""
    if (directory / "model" / "config.json").is_file():
        return
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    topics = pydoc_data.topics.topics
    (directory / "texts").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(sorted(topics)):
        (directory / "texts" / f"{number:03}.txt").write_text(topics[name], encoding="utf-8")
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<eos>"], initial_alphabet=alphabet)
    raw.train_from_iterator([topics[name] for name in sorted(topics)], trainer)
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(directory / "model")
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(directory / "model")
