"""A toy model with a tokenizer and texts, in a directory: what a recipe trains on in tests."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from train_toys import toy_model
from transformers import PreTrainedTokenizerFast

SMALL = (
    "data.sequence_length=32", "batch.micro_batch=2", "batch.accumulation=2", "budget.total_tokens=null",
    "budget.max_seconds=null", "budget.max_steps=3", "device.accelerator=cpu", "log.tracker=none",
)  # fmt: skip


def write_toy(directory: Path) -> Path:
    """Write ``model`` (two layers, 300 tokens) and ``texts`` (20 files) into ``directory`` and return it."""
    text = [f"the number {a} and the number {b} make {a + b} in all\n" for a in range(40) for b in range(3)]
    for i in range(20):
        path = directory / "texts" / f"{i:02}.txt"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text("".join(text[i * 6 : i * 6 + 6]), encoding="utf-8")
    raw = Tokenizer(models.BPE(unk_token=None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet)
    raw.train_from_iterator(text, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")
    tokenizer.save_pretrained(directory / "model")
    model = toy_model(1, vocab_size=len(tokenizer), initializer_range=0.05)
    model.save_pretrained(directory / "model")  # type: ignore[operator]
    return directory


def arguments(toy: Path, name: str) -> list[str]:
    """Return the overrides that make the recipe ``name`` small enough for a toy."""
    return [f"training={name}", f"model={toy / 'model'}", f"data={toy / 'texts'}", *SMALL]
