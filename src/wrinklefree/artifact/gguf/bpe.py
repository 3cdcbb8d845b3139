"""Byte-level BPE both ways: GGUF's ``gpt2`` vocabulary and the model of a tokenizer.json.

Source: llama.cpp, src/llama-vocab.cpp; a merge stands there as its two halves with a space between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wrinklefree.artifact.gguf.container import GgufFile
from wrinklefree.artifact.gguf.metadata import Value
from wrinklefree.artifact.gguf.pre_tokenizers import PreTokenizer, named, recognise, steps
from wrinklefree.artifact.gguf.tokenizer_files import TokenizerFiles
from wrinklefree.artifact.gguf.vocabulary import MAX_MERGES, Vocabulary, check_texts, named_tokens
from wrinklefree.errors import FormatError, InputError

MERGES_KEY = "tokenizer.ggml.merges"
PRE_KEY = "tokenizer.ggml.pre"
# Files of bitnet.cpp's converter lack the pre-tokenizer's name; their models have Llama 3's vocabulary.
_LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")


def read_pre_tokenizer(file: GgufFile, vocabulary: Vocabulary) -> PreTokenizer:
    """Return how the file's tokenizer cuts a text. Raises: FormatError when it does not say, or not known how."""
    place = f"{file.path}: {PRE_KEY}"
    if PRE_KEY in file.metadata:
        return named(file.text(PRE_KEY), place)
    if set(_LLAMA3_TOKENS) <= set(vocabulary.tokens):
        return named("llama-bpe", place)
    raise FormatError(
        f"{place}: missing, and the vocabulary is not Llama 3's; without it texts would be cut wrongly (the file was "
        "written by a converter from before April 2024: convert it again)"
    )


def read_byte_level(file: GgufFile, vocabulary: Vocabulary, kind: PreTokenizer) -> dict[str, Any]:
    """Return ``normalizer``, ``pre_tokenizer``, ``decoder`` and ``model`` of a tokenizer.json.

    Raises: FormatError when a merge is no pair of tokens that make a token.
    """
    vocab = named_tokens(vocabulary)
    return {
        **steps(kind),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": kind.ignore_merges,
            "vocab": vocab,
            "merges": _read_merges(file, vocab),
        },
    }


def _read_merges(file: GgufFile, vocab: dict[str, int]) -> list[list[str]]:
    place = f"{file.path}: {MERGES_KEY}"
    texts = file.texts(MERGES_KEY)
    if len(texts) > MAX_MERGES:
        raise FormatError(f"{place}: found {len(texts)}, at most {MAX_MERGES} are allowed")
    check_texts(texts, place)
    merges = []
    for index, text in enumerate(texts):
        middle = text.find(" ", 1)
        left, right = text[:middle], text[middle + 1 :]
        if middle < 0 or left not in vocab or right not in vocab or left + right not in vocab:
            raise FormatError(f"{place}: entry {index}, {text[:80]!r}, is no pair of tokens that make a token")
        merges.append([left, right])
    return merges


def write_byte_level(source: TokenizerFiles) -> tuple[Vocabulary, dict[str, Value]]:
    """Return the vocabulary and the keys that this kind has of its own.

    Raises: InputError for what llama.cpp does otherwise; FormatError for damage.
    """
    kind = recognise(source.tokenizer, source.place)
    model = source.model
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(f"{source.place}: model: {name} {model[name]!r}, which GGUF has no word for")
    vocab = source.model_vocab
    missing = sorted(set(_byte_characters()) - set(vocab))
    if model.get("unk_token") and missing:
        raise InputError(
            f"{source.place}: model: unk_token {model['unk_token']!r} stands for {len(missing)} bytes without a token; "
            "llama.cpp drops such bytes"
        )
    keys: dict[str, Value] = {
        PRE_KEY: kind.name,
        MERGES_KEY: [" ".join(pair) for pair in checked_merges(source, vocab)],
        "tokenizer.ggml.add_space_prefix": False,
    }
    return source.vocabulary(), keys


def checked_merges(source: TokenizerFiles, vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the merges of a tokenizer.json. Raises: FormatError when one is no pair of tokens that make a token."""
    place = f"{source.place}: model: merges"
    listed = source.model.get("merges")
    if not isinstance(listed, list) or len(listed) > MAX_MERGES:
        raise FormatError(f"{place}: a list of at most {MAX_MERGES} is needed")
    merges = []
    for index, entry in enumerate(listed):
        pair = entry.split(" ") if isinstance(entry, str) else entry
        match pair:
            case [str(left), str(right)] if left in vocab and right in vocab and left + right in vocab:
                merges.append((left, right))
            case _:
                raise FormatError(
                    f"{place}: entry {index}, {str(entry)[:80]!r}, is no pair of tokens that make a token"
                )
        if " " in left or not (left and right):
            raise InputError(f"{place}: entry {index}, {pair}: GGUF writes a merge as its halves with a space between")
    return merges


def _byte_characters() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]
