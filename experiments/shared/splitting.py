"""Texts as JSON lines, and their split into training and held-out text, by document.

A held-out chat answers a prompt that no training chat answers; a held-out piece of a longer text is of a file of which
nothing is trained on. Training text is rid of passages that held-out text has (`wrinklefree.data.split`), where the
system prompt and the template, which all chats share, do not count.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from wrinklefree.data.document import Document
from wrinklefree.data.split import guard, shared_document

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


def split_chats(texts: Sequence[str], held: int) -> tuple[list[str], list[str]]:
    """Hold out the first ``held`` chats; training chats have other prompts and share no passage with them."""
    texts = list(dict.fromkeys(texts))
    kept = texts[:held]
    prompts = {_prompt(text) for text in kept}
    # Prompts of one template share words with each other, so only answers are compared.
    held_answers = [Document(str(i), answer(text)) for i, text in enumerate(kept)]
    train = [
        text
        for text in texts[held:]
        if _prompt(text) not in prompts and shared_document([Document("t", answer(text))], held_answers) is None
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
    if not train:
        return [], [document.text for document in held_out]
    return [document.text for document in guard(train, held_out).train], [document.text for document in held_out]


def _prompt(text: str) -> str:
    return text.split(_QUESTION)[-1].split("<|im_end|>")[0]


def answer(text: str) -> str:
    """Return what the model said last in a chat."""
    return text.split(_ANSWER)[-1]


def _file(entry: dict[str, str]) -> str:
    return entry["source"].split("#")[0]
