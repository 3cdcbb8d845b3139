"""The corpus of the experiment: the original model's own chats, and documentation; train and held-out, by document."""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from splitting import read, split_chats, split_docs, write

KINDS = ("chat", "docs")


def build(
    chats: Path, documentation: Path, out: Path, held_chats: int, held_docs: int, docs_characters: int, seed: int
) -> dict[str, int]:
    """Write train-KIND.jsonl and held-KIND.jsonl below ``out``; return the characters of each."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, tuple[list[str], list[str]]] = {
        "chat": split_chats([entry["text"] for entry in read(chats)], held_chats),
        "docs": split_docs(read(documentation), held_docs, docs_characters, seed),
    }
    sizes = {}
    for kind, (train, held) in found.items():
        sizes[f"train-{kind}"] = write(out / f"train-{kind}.jsonl", train)
        sizes[f"held-{kind}"] = write(out / f"held-{kind}.jsonl", held)
    return sizes


def mixed(directory: Path, out: Path, seed: int) -> None:
    """Write the training documents of all kinds in one random order: what calibration reads."""
    texts = [entry["text"] for kind in KINDS for entry in read(directory / f"train-{kind}.jsonl")]
    random.Random(seed).shuffle(texts)
    write(out, texts)
