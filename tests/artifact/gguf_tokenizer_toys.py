"""Small tokenizers of every kind that GGUF can hold, trained on a paragraph, as the files of a model directory."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from wrinklefree.artifact.gguf.container import GgufFile, GgufWriter, read_gguf
from wrinklefree.artifact.gguf.tokenizer import tokenizer_to_gguf
from wrinklefree.artifact.gguf.types import TYPES

TEXT = (
    "It's a small town: 1234 people, 56 dogs and 7 cats. They've lived there since 1999, haven't they?\n\n"
    "def f(x):\n    return x + 12345  # naïve café, Übermut\n\tWe'LL see what THEY'RE about... «où» ça!\n"
    "Привет мир, 你好世界, こんにちは, שלום, नमस्ते 🦙🚀 ½ ² ٣\n" * 3
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut(expression: str) -> list[Any]:
    split = pre_tokenizers.Split(Regex(expression), "isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# Name in GGUF -> steps, whether a normalizer composes characters, whether a piece that is a token is taken whole.
BYTE_LEVEL: dict[str, tuple[list[Any], bool, bool]] = {
    "gpt-2": ([_GPT2], False, False),
    "smollm": ([pre_tokenizers.Digits(individual_digits=True), _GPT2], False, False),
    "llama-bpe": (_cut(_LLAMA3), False, True),
    "smaug-bpe": (_cut(_LLAMA3), False, False),
    "qwen2": (_cut(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), True, False),
    "deepseek-r1-qwen": (_cut(_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")), False, False),
    "tekken": (_cut(_TEKKEN), False, True),
    "olmo": ([_GPT2], True, False),
    "command-r": ([pre_tokenizers.Digits(individual_digits=True), _GPT2], True, False),
}


@cache
def byte_level(name: str) -> Tokenizer:
    """Return a tokenizer trained with the steps of a name of GGUF."""
    steps, composes, ignores = BYTE_LEVEL[name]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignores))
    tokenizer.normalizer = normalizers.NFC() if composes else None  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


@cache
def sentencepiece(prefix: bool) -> Tokenizer:
    """Return a tokenizer as converters of SentencePiece's BPE write it: every way to split a token is a merge.

    ``prefix``: a space is put before a text.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, show_progress=False))
    words = sorted(trained.get_vocab(), key=trained.get_vocab().__getitem__)
    made = [word for word in words if len(word) > 1] + ["▁" * length for length in range(2, 9)]
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *made, *(w for w in words if len(w) == 1)]
    vocab = {name: index for index, name in enumerate(dict.fromkeys(names))}
    merges = [
        (word[:middle], word[middle:])
        for word in dict.fromkeys(made)
        for middle in range(len(word) - 1, 0, -1)
        if word[:middle] in vocab and word[middle:] in vocab
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if prefix else replaced
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", *SPECIAL)])
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    return tokenizer


def kind(name: str) -> Tokenizer:
    """Return the toy of a name: a pre-tokenizer's, or ``llama`` with or without a space before a text."""
    return sentencepiece(name == "llama") if name.startswith("llama") and name != "llama-bpe" else byte_level(name)


KINDS = (*BYTE_LEVEL, "llama", "llama without prefix")


def files(
    tokenizer: Tokenizer, *, bos: bool = False, template: str | None = TEMPLATE, **config: object
) -> dict[str, bytes]:
    """Return the files of a model directory around a tokenizer; ``bos`` is what its post-processor adds."""
    if bos:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        token = SPECIAL[0]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, tokenizer.token_to_id(token))]
        )
    settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[2], **config}
    found = {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    if template is not None:
        found["chat_template.jinja"] = template.encode()
    return found


def config(found: dict[str, bytes], more: int = 3) -> dict[str, int]:
    """Return a config.json whose model has ``more`` ids than the tokenizer."""
    tokenizer = Tokenizer.from_str(found["tokenizer.json"].decode())
    return {"vocab_size": max(tokenizer.get_vocab().values()) + 1 + more}


def gguf(path: Path, keys: dict[str, Any], rows: int = 0) -> GgufFile:
    """Write a file that holds these keys, and a table of ``rows`` or no tensor, and read it."""
    tensors = [("token_embd.weight", TYPES["F32"], (rows, 1))] if rows else []
    with GgufWriter(path, {"general.architecture": "llama", **keys}, tensors) as writer:
        if rows:
            writer.write("token_embd.weight", np.zeros((rows, 1), np.float32))
    return read_gguf(path)


def written(path: Path, found: dict[str, bytes], **changes: Any) -> GgufFile:
    """Write the keys of a tokenizer, some changed or (None) left out, and read them."""
    keys = {**tokenizer_to_gguf(found, config(found)), **changes}
    return gguf(path, {key: value for key, value in keys.items() if value is not None})


def int32(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int32)


@cache
def keys(name: str) -> dict[str, Any]:
    """Return the keys of a toy's tokenizer."""
    made = files(kind(name))
    return tokenizer_to_gguf(made, config(made))


def in_memory(keys: dict[str, Any]) -> GgufFile:
    """Return a file of these keys that is on no disk any more."""
    with tempfile.TemporaryDirectory() as directory:
        return gguf(Path(directory) / "t.gguf", keys)
