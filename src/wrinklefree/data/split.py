"""Held-out documents, and the promise that nothing in the training documents stands in them.

Documentation repeats itself: without the guard a model is tested on paragraphs it was trained on. The rule: no
training document shares a run of eight words with a held-out one. A run of words, not a line, because the same
passage is wrapped differently in two places. Eight, because of what the Python documentation (2.42 M characters of
training text) loses at each length: 13 words 9,400 characters, 10 12,000, 8 16,900, 7 21,300, 6 30,000, 5 87,800. At
eight all of it lies in topics, which do copy from each other; from seven down stock phrases ("can be used to
customize", "raises an exception if the") start to match docstrings that copied nothing. Words are compared without
case, punctuation and markup. What goes is the whole paragraph that takes part in a shared run: half a sentence is no
training text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wrinklefree.data.document import Document
from wrinklefree.errors import InputError

SHARED_WORDS = 8
_WORD = re.compile(r"\w+")
_PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")


@dataclass(frozen=True)
class Split:
    """The two sides, what the guard took from the training side, and how many documents earlier sources have."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    removed_characters: int
    removed_documents: int
    duplicates: int = 0

    def guarded(self, train: Sequence[Document], others: Sequence[Document]) -> Split:
        """Return the split whose training side is ``train`` without what it shares with ``others``."""
        again = guard(train, others)
        return replace(
            self,
            train=again.train,
            removed_characters=self.removed_characters + again.removed_characters,
            removed_documents=self.removed_documents + again.removed_documents,
        )

    def __str__(self) -> str:
        return (
            f"{len(self.train)} training documents, {len(self.held_out)} held out; {self.removed_characters} "
            f"characters ({self.removed_documents} whole documents) are not trained on: held-out documents share them"
            + (f"; {self.duplicates} exact duplicates of earlier sources are left out" if self.duplicates else "")
        )


def split(documents: Sequence[Document], share: float = 0.1, ids: Iterable[str] = ()) -> Split:
    """Return training and held-out documents.

    ``ids``: the held-out documents by name; without them ``share`` of the documents is held out, chosen by the hash
    of the id, so that a document stays on its side whatever else is added (and at least one document is held out).
    A ``share`` of 0 holds nothing out and removes nothing: for text that was split before it came here.

    Raises: InputError for a share outside 0 to 1, an unknown id, or when one side is left without text.
    """
    ids = tuple(ids)
    if share == 0.0 and not ids:
        return Split(tuple(documents), (), 0, 0)
    chosen = _named(documents, frozenset(ids)) if ids else _hashed(documents, share)
    held_out = tuple(document for document in documents if document.id in chosen)
    return guard([document for document in documents if document.id not in chosen], held_out)


def without_duplicates(sources: Sequence[Sequence[Document]]) -> list[list[Document]]:
    """Return the documents of each source without those whose text an earlier source has.

    Texts that differ in white space alone are the same. What a source repeats within itself is left to it.
    """
    seen, kept = set[bytes](), []
    for documents in sources:
        texts = [hashlib.sha256(" ".join(document.text.split()).encode()).digest() for document in documents]
        kept.append([document for document, text in zip(documents, texts, strict=True) if text not in seen])
        seen.update(texts)
    return kept


def guard(train: Sequence[Document], held_out: Sequence[Document]) -> Split:
    """Return both sides after removing from ``train`` every paragraph that takes part in a shared run of words.

    Raises: InputError when nothing is left to train on.
    """
    shared = set[tuple[str, ...]]()
    for document in held_out:
        shared |= set(_runs(_words(document.text)))
    kept = []
    before = sum(len(document.text) for document in train)
    for document in train:
        text = _without(document.text, shared)
        if text.strip():
            kept.append(Document(document.id, text))
    if not kept:
        raise InputError(
            f"split: {len(train)} documents are left for training and none has text that is not held out; give more "
            "documents (a text file is one document; a directory of files or a jsonl file holds many)"
        )
    after = sum(len(document.text) for document in kept)
    return Split(tuple(kept), tuple(held_out), before - after, len(train) - len(kept))


def set_aside(train: Sequence[Document], share: float) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """Return what is left of the training documents, and the ``share`` of them (at least one) that is set aside.

    They are chosen by another hash of the id than `split` uses.

    Raises: InputError for a share outside 0 to 1, or when nothing would be left to train on.
    """
    chosen = _hashed([Document(f"aside:{document.id}", document.text) for document in train], share)
    aside = tuple(document for document in train if f"aside:{document.id}" in chosen)
    if len(aside) == len(train):
        raise InputError(f"probe: a source has {len(train)} documents to train on, none can be set aside for a probe")
    return tuple(document for document in train if f"aside:{document.id}" not in chosen), aside


def shared_document(documents: Iterable[Document], held_out: Iterable[Document]) -> str | None:
    """Return the id of the first document that shares a run of words, or its whole text, with a held-out one."""
    runs, texts = set[tuple[str, ...]](), set[tuple[str, ...]]()
    for document in held_out:
        words = _words(document.text)
        runs |= set(_runs(words))
        texts.add(tuple(words))
    for document in documents:
        words = _words(document.text)
        if tuple(words) in texts or not runs.isdisjoint(_runs(words)):
            return document.id
    return None


def shares_passage(left: str, right: str) -> bool:
    """Return whether two texts share a run of SHARED_WORDS words."""
    return not set(_runs(_words(left))).isdisjoint(_runs(_words(right)))


def _named(documents: Sequence[Document], ids: frozenset[str]) -> frozenset[str]:
    missing = sorted(ids - {document.id for document in documents})
    if missing:
        raise InputError(f"held-out documents: {', '.join(missing)} not found among {len(documents)} documents")
    return ids


def _hashed(documents: Sequence[Document], share: float) -> frozenset[str]:
    if not 0.0 < share < 1.0:
        raise InputError(f"held-out share: found {share}, allowed is more than 0 and less than 1")
    places = {document.id: _place(document.id) for document in documents}
    chosen = frozenset(name for name, place in places.items() if place < share)
    return chosen or frozenset(sorted(places, key=places.__getitem__)[:1])


def _place(name: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big") / 2**56


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _runs(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[offset:] for offset in range(SHARED_WORDS)), strict=False)


def _without(text: str, shared: set[tuple[str, ...]]) -> str:
    """Return the text without the paragraphs of shared runs. Repeats, because a removal joins its neighbours."""
    paragraphs = _PARAGRAPH_BREAK.split(text)
    while True:
        words, owners = [], []
        for index, paragraph in enumerate(paragraphs):
            found = _words(paragraph)
            words += found
            owners += [index] * len(found)
        touched = set[int]()
        for start, run in enumerate(_runs(words)):
            if run in shared:
                touched.update(owners[start : start + SHARED_WORDS])
        if not touched:
            return text if len(paragraphs) == len(_PARAGRAPH_BREAK.split(text)) else "\n\n".join(paragraphs)
        paragraphs = [paragraph for index, paragraph in enumerate(paragraphs) if index not in touched]
