"""A teacher that knows how a chat goes and five words, with tokens and a template like SmolLM2's, and packages."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from train_toys import toy_model
from transformers import PreTrainedTokenizerFast

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_WORDS = "the number and the other number"
_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou help<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_teacher(directory: Path) -> Path:
    """Write ``teacher`` and, of each kind of text, ``documentation.jsonl``, ``addresses.jsonl``, ``novel.jsonl``."""
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=_SPECIAL, initial_alphabet=alphabet)
    raw.train_from_iterator([f"system user assistant {_WORDS}"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", chat_template=_TEMPLATE,
        additional_special_tokens=_SPECIAL[:1],
    )  # fmt: skip
    (directory / "teacher").mkdir(parents=True)
    tokenizer.save_pretrained(directory / "teacher")
    model = toy_model(1, vocab_size=len(tokenizer), max_position_embeddings=2048, hidden_size=64, head_dim=32,
                      num_attention_heads=2, num_key_value_heads=1, intermediate_size=128,
                      bos_token_id=1, eos_token_id=2)  # fmt: skip
    _learn(model, tokenizer)
    model.save_pretrained(directory / "teacher")  # type: ignore[operator]
    for kind in ("documentation", "addresses", "novel", "reviews"):
        entries = [
            {"source": f"{kind}{i}#0", "text": " ".join(f"{kind[0]}{i}w{j}" for j in range(60))} for i in range(24)
        ]
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (directory / f"{kind}.jsonl").write_text(lines, encoding="utf-8")
    return directory


def _learn(model: nn.Module, tokenizer: PreTrainedTokenizerFast) -> None:
    """A few steps on chats, so that its turns end and are text."""
    draw, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        pairs = [[" ".join(draw.choices(_WORDS.split(), k=draw.randint(1, 8))) for _ in range(2)] for _ in range(8)]
        chats = [[{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairs]
        ids = [tokenizer.apply_chat_template(chat, return_dict=False) for chat in chats]
        longest = max(map(len, ids))
        batch = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        loss = model(input_ids=batch, labels=batch.masked_fill(batch == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
