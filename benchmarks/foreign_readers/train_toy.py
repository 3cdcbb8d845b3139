"""A small ternary model whose widths are multiples of 256, so that every format holds all of its layers.

A llama of four layers of 256 with one scale for each matrix, trained from nothing on Python's documentation with a
byte-pair tokenizer of 1,024 entries, a few minutes on one core: enough that its choices are no ties. Usage:
python benchmarks/foreign_readers/train_toy.py OUT [--steps 400]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wrinklefree.data.python_docs import python_docs
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo, save_checkpoint
from wrinklefree.quant.ternary import TernarySpec

VOCABULARY, LENGTH, BATCH = 1024, 128, 8


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level byte-pair tokenizer fitted to the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save(f"{directory}/tokenizer.json")
        settings = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
        Path(directory, "tokenizer_config.json").write_text(json.dumps(settings))
        return PreTrainedTokenizerFast.from_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    texts = [document.text for document in python_docs()][:200]
    tokenizer = tokenizer_of(texts)
    ids = torch.tensor(tokenizer("\n\n".join(texts))["input_ids"])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=1024, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.05,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    spec = TernarySpec("tensor", 64)
    convert_model(model, spec).value = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=arguments.steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(arguments.steps):
        offsets = torch.randint(len(ids) - LENGTH, (BATCH,))
        batch = torch.stack([ids[offset : offset + LENGTH] for offset in offsets.tolist()])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 25 == 0 or step == arguments.steps - 1:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    tokens = arguments.steps * LENGTH * BATCH
    save_checkpoint(model, tokenizer, arguments.out, CheckpointInfo("toy", spec=spec, tokens_seen=tokens))


if __name__ == "__main__":
    main()
