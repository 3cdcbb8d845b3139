"""The corpus of the experiment: the original model's own chats, and documentation; train and held-out, by document.

A held-out chat answers a prompt that no training chat answers; a held-out piece of documentation is of a file of which
nothing is trained on. Training text is rid of passages that held-out text has (`wrinklefree.data.split`), where the
system prompt and the template, which all chats share, do not count.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

from wrinklefree.data.document import Document
from wrinklefree.data.split import guard, shared_document

KINDS = ("chat", "docs")
_ANSWER = "<|im_start|>assistant\n"
_QUESTION = "<|im_start|>user\n"


def read(path: Path) -> list[dict[str, str]]:
    """Return the objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def write(path: Path, texts: Sequence[str]) -> int:
    """Write one JSON object a line; return the characters of text."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return sum(map(len, texts))


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


def split_chats(texts: Sequence[str], held: int) -> tuple[list[str], list[str]]:
    """Hold out the first ``held`` chats; training chats have other prompts and share no passage with them."""
    texts = list(dict.fromkeys(texts))
    kept = texts[:held]
    prompts = {_prompt(text) for text in kept}
    # Prompts of one template share words with each other, so only answers are compared.
    held_answers = [Document(str(i), _answer(text)) for i, text in enumerate(kept)]
    train = [
        text
        for text in texts[held:]
        if _prompt(text) not in prompts and shared_document([Document("t", _answer(text))], held_answers) is None
    ]
    return train, kept


def split_docs(entries: Sequence[dict[str, str]], held: int, characters: int, seed: int) -> tuple[list[str], list[str]]:
    """Hold out ``held`` pieces, each of another file; train on other files, at most ``characters`` of them."""
    order = sorted(entries, key=lambda entry: hashlib.sha256(f"{seed} {entry['source']}".encode()).digest())
    files = list(dict.fromkeys(_file(entry) for entry in order))
    chosen = set(files[:held])
    kept: dict[str, Document] = {}
    train: list[Document] = []
    for entry in order:
        document = Document(entry["source"], entry["text"])
        if _file(entry) in chosen:
            kept.setdefault(_file(entry), document)
        elif characters > 0:
            train.append(document)
            characters -= len(document.text)
    held_out = list(kept.values())
    return [document.text for document in guard(train, held_out).train], [document.text for document in held_out]


def mixed(directory: Path, out: Path, seed: int) -> None:
    """Write the training documents of all kinds in one random order: what calibration reads."""
    texts = [entry["text"] for kind in KINDS for entry in read(directory / f"train-{kind}.jsonl")]
    random.Random(seed).shuffle(texts)
    write(out, texts)


def _prompt(text: str) -> str:
    return text.split(_QUESTION)[-1].split("<|im_end|>")[0]


def _answer(text: str) -> str:
    return text.split(_ANSWER)[-1]


def _file(entry: dict[str, str]) -> str:
    return entry["source"].split("#")[0]
