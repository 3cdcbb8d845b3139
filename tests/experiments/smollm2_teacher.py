"""A teacher that knows nothing, with chat tokens and a template like SmolLM2's, and packages full of its words."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from train_toys import toy_model
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_teacher(directory: Path) -> Path:
    """Write ``teacher`` and, of each kind of text, ``documentation.jsonl``, ``addresses.jsonl``, ``novel.jsonl``."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    raw.train_from_iterator(["system user assistant the number and the other number"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=_TEMPLATE,
        additional_special_tokens=_SPECIAL[:1],
    )  # fmt: skip
    (directory / "teacher").mkdir(parents=True)
    tokenizer.save_pretrained(directory / "teacher")
    model = toy_model(1, vocab_size=len(tokenizer), max_position_embeddings=2048, hidden_size=64, head_dim=32,
                      num_attention_heads=2, num_key_value_heads=1, intermediate_size=128,
                      bos_token_id=1, eos_token_id=2)  # fmt: skip
    model.save_pretrained(directory / "teacher")  # type: ignore[operator]
    for kind in ("documentation", "addresses", "novel", "reviews"):
        entries = [
            {"source": f"{kind}{i}#0", "text": " ".join(f"{kind[0]}{i}w{j}" for j in range(60))} for i in range(24)
        ]
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (directory / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
    return directory
