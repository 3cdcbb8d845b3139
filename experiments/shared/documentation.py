"""Documentation that Debian packages carry, as documents: one JSON line each with text, kind and source.

python documentation.py DIRECTORY OUT.jsonl

DIRECTORY holds unpacked packages, one directory each (``apt-get download P && dpkg -x P.deb DIRECTORY/P``). Sources of
Sphinx and AsciiDoc documents, plain text and POD are taken, HTML is not. The texts belong to their authors and are used
on the machine only; README.md lists the packages and their licences.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = {
    "python3.11-doc": "PSF-2.0",
    "git-doc": "GPL-2.0",
    "debian-reference-en": "GPL-2.0-or-later",
    "developers-reference": "GPL-2.0-or-later",
    "maint-guide": "GPL-2.0-or-later",
    "debian-faq": "GPL-2.0-or-later",
    "doc-debian": "public domain, GPL-2.0-or-later and others",
    "perl-doc": "GPL-1.0-or-later or Artistic-1.0",
}
_ENDINGS = (".txt", ".txt.gz", ".pod", "debian-manifesto.gz")
_NOT = re.compile(r"RelNotes|/whatsnew/|perl[0-9]+delta|constitution\.1|social-contract\.1|debian-faq\.txt")
_LEAST = 1500  # characters of a document: shorter ones are lists of links
_MOST = 6000  # longer ones are cut at a paragraph: each piece is a document


def documents(directory: Path) -> Iterator[dict[str, str]]:
    """Yield every document of the packages, in the order of their names."""
    for package in PACKAGES:
        for path in sorted((directory / package).rglob("*")):
            name = str(path.relative_to(directory))
            if path.is_symlink() or not path.is_file() or not name.endswith(_ENDINGS) or _NOT.search(name):
                continue
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8", errors="replace")
            for number, part in enumerate(pieces(text)):
                yield {"text": part, "source": f"{name}#{number}"}


def pieces(text: str) -> Iterator[str]:
    """Cut a text at blank lines into pieces of at most _MOST characters where that is possible."""
    part: list[str] = []
    size = 0
    for paragraph in re.split(r"\n[ \t]*\n", text.replace("\r", "")):
        if size + len(paragraph) > _MOST and size >= _LEAST:
            yield "\n\n".join(part)
            part, size = [], 0
        part.append(paragraph)
        size += len(paragraph) + 2
    if size >= _LEAST:
        yield "\n\n".join(part)


def write_documents(directory: Path, out: Path) -> int:
    """Write every document once; return how many."""
    seen: set[str] = set()
    with out.open("w", encoding="utf-8") as file:
        for document in documents(directory):
            key = " ".join(document["text"].split())
            if key not in seen:
                seen.add(key)
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
    return len(seen)


if __name__ == "__main__":
    print(write_documents(Path(sys.argv[1]), Path(sys.argv[2])))
