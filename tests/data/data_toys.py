"""Toys of the data tests: a byte tokenizer (ids 0-255 are bytes, 256 ends a document) and documents from a seed."""

from __future__ import annotations

import random

from wrinklefree.data.document import Document
from wrinklefree.data.packing import PackedSequences
from wrinklefree.data.tokens import TextEncoder, tokenize

EOS = 256


def byte_encoder() -> TextEncoder:
    return TextEncoder(lambda text: list(text.encode()), EOS)


def toy_documents(count: int, seed: int = 0, longest: int = 60) -> list[Document]:
    rng = random.Random(seed)
    return [
        Document(f"toy:{seed}:{i}", "".join(rng.choices("abcdefgh \n", k=rng.randint(1, longest))))
        for i in range(count)
    ]


def toy_sequences(count: int, length: int = 16, seed: int = 0) -> PackedSequences:
    return PackedSequences(tokenize(toy_documents(count, seed), byte_encoder()), length, EOS)
