"""The corpus: every kind of text split by document into training and held-out text, and one mixture to calibrate on.

    corpus/train-KIND.jsonl, held-KIND.jsonl    held-out text alone of the kinds in `held_text.UNSEEN`
    corpus/calibration.jsonl                    of all training kinds, shuffled
    corpus/tokens.json                          tokens of each file

No training text shares eight words in a row with held-out text of any kind (`wrinklefree.data.split`); of chats only
the answers are compared, and a held-out chat answers a prompt of its own.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))

from held_text import TRAINED, UNSEEN
from splitting import answer, read, split_chats, split_docs, write

from wrinklefree.data.document import Document
from wrinklefree.data.split import guard, shared_document

_MOST = 6000  # characters of a document in the mixture
_HELD_MOST = 4000  # characters of a held-out document
# Documents that package files hold -> the file.
FILES = {"docs": "documentation", "reviews": "reviews", "addresses": "addresses", "novel": "novel", "code": "code"}
WRITTEN = tuple(kind for kind in TRAINED if kind in FILES)  # by people, and trained on


def split_files(work: Path, held: Mapping[str, int], characters: int, seed: int) -> None:
    """Split the texts that people wrote, ``characters`` of each kind to train on; what is there already stays."""
    out = work / "corpus"
    if all(path.exists() for path in _files(out, WRITTEN)):
        return
    out.mkdir(parents=True, exist_ok=True)
    train: dict[str, list[str]] = {}
    kept: dict[str, list[str]] = {}
    for kind, name in FILES.items():
        entries = read(work / f"{name}.jsonl")
        train[kind], kept[kind] = split_docs(entries, held[kind], 0 if kind in UNSEEN else characters, seed)
        kept[kind] = [text[:_HELD_MOST] for text in kept[kind]]
    for kind in WRITTEN:
        others = [text for other in FILES if other != kind for text in kept[other]]
        write(out / f"train-{kind}.jsonl", without(train[kind], others))
    for kind in FILES:
        write(out / f"held-{kind}.jsonl", kept[kind])


def without(train: Sequence[str], held: Sequence[str]) -> list[str]:
    """Return training texts without the paragraphs that share a passage with held-out ones."""
    documents, others = ([Document(str(i), text) for i, text in enumerate(texts)] for texts in (train, held))
    return [document.text for document in guard(documents, others).train] if others else list(train)


def openings(work: Path, counts: Mapping[str, int], seed: int) -> list[dict[str, str]]:
    """Return beginnings for the teacher to go on from: 20 to 45 words of a document, ``held`` yes or no.

    A review is begun at its beginning, other texts anywhere. One in 24 is of a held-out document, so that what goes on
    from it is held out, too.
    """
    draw, found = random.Random(seed), {}
    for kind, count in counts.items():
        texts = {side: read(work / "corpus" / f"{side}-{kind}.jsonl") for side in ("train", "held")}
        for number in range(count):
            side = "train" if number % 24 else "held"
            words = draw.choice(texts[side])["text"].split()
            length = draw.randint(20, 45)
            start = 0 if kind == "reviews" else draw.randrange(max(1, len(words) - length))
            found[" ".join(words[start : start + length])] = "yes" if side == "held" else "no"
    entries = [{"text": text, "held": side} for text, side in found.items()]
    draw.shuffle(entries)
    return entries


def split_sampled(work: Path, names: Mapping[str, Iterable[str]], held: Mapping[str, int], seed: int) -> None:
    """Split what the teacher wrote: ``names`` of the files of each kind, chat and continuation."""
    out = work / "corpus"
    others = [Document(str(i), entry["text"]) for i, entry in enumerate(_held(out, FILES))]
    chats = [entry["text"] for name in names["chat"] for entry in read(work / f"{name}.jsonl")]
    random.Random(seed).shuffle(chats)
    train, kept = split_chats(chats, held["chat"])
    train = [text for text in train if shared_document([Document("t", answer(text))], others) is None]
    write(out / "train-chat.jsonl", train)
    write(out / "held-chat.jsonl", kept)
    answers = [answer(text) for text in kept]
    asked = read(work / "openings.jsonl")
    begun: dict[str, list[str]] = {"yes": [], "no": []}
    for name in names["continuation"]:
        # Each file takes the openings in turn, from the first on.
        for entry in read(work / f"{name}.jsonl"):
            begun[asked[int(entry["id"].rsplit("-", 1)[1]) % len(asked)]["held"]].append(entry["text"])
    kept = list(dict.fromkeys(begun["yes"]))[: held["continuation"]]
    write(out / "held-continuation.jsonl", kept)
    everywhere = [*kept, *answers, *(document.text for document in others)]
    write(out / "train-continuation.jsonl", without(list(dict.fromkeys(begun["no"])), everywhere))
    for kind in WRITTEN:
        path = out / f"train-{kind}.jsonl"
        write(path, without([entry["text"] for entry in read(path)], [*kept, *answers]))


def mix(out: Path, characters: Mapping[str, int], seed: int) -> None:
    """Write calibration.jsonl: so many ``characters`` of each kind, whole documents of at most 6,000, shuffled."""
    mixed: list[str] = []
    for kind, most in characters.items():
        texts = [entry["text"][:_MOST] for entry in read(out / f"train-{kind}.jsonl")]
        random.Random(seed).shuffle(texts)
        for text in texts:
            if most <= 0:
                break
            mixed.append(text)
            most -= len(text)
    random.Random(seed + 1).shuffle(mixed)
    write(out / "calibration.jsonl", mixed)


def count(out: Path, tokens: Callable[[str], int]) -> dict[str, dict[str, int]]:
    """Write and return documents, characters and tokens of every file."""
    found = {}
    for path in sorted(out.glob("*.jsonl")):
        texts = [entry["text"] for entry in read(path)]
        found[path.stem] = {
            "documents": len(texts), "characters": sum(map(len, texts)), "tokens": sum(map(tokens, texts))
        }  # fmt: skip
    (out / "tokens.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def _files(out: Path, kinds: Iterable[str]) -> list[Path]:
    return [out / f"train-{kind}.jsonl" for kind in kinds] + [out / f"held-{kind}.jsonl" for kind in FILES]


def _held(out: Path, kinds: Iterable[str]) -> list[dict[str, str]]:
    return [entry for kind in kinds for entry in read(out / f"held-{kind}.jsonl")]
