"""Several results beside each other: one row for each, one column for each figure that was measured in the same way.

Two figures share a column only if everything that can change them is the same: text, window, stride, limit, examples
before a question, ... What was measured in several ways gets as many columns, and the table says how they differ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import read_bytes
from wrinklefree.artifact.json_text import parse_json
from wrinklefree.artifact.markdown import table
from wrinklefree.errors import InputError
from wrinklefree.eval.result import Figure, settings_text, value_text


@dataclass(frozen=True)
class Row:
    """A result: ``name`` of its file, the model, what it ran on, ``bytes`` of its weights (None: not known)."""

    name: str
    model: str
    runs_on: str
    bytes: int | None
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Column:
    """``title``: the figure's name, with a number where it was measured in several ways. ``values``: by row or None."""

    title: str
    name: str
    settings: dict[str, Any]
    higher_is_better: bool
    values: tuple[Figure | None, ...]

    @property
    def best(self) -> float | None:
        """The best value where there are several, else None."""
        found = [each.value for each in self.values if each is not None]
        return None if len(found) < 2 else (max if self.higher_is_better else min)(found)


@dataclass(frozen=True)
class Comparison:
    """``notes``: what does not compare, and how the columns were measured."""

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    notes: tuple[str, ...]

    def cells(self) -> list[list[str]]:
        """Return the table's rows as text; the best of a column between asterisks."""
        return [
            [row.name, row.model, row.runs_on, "" if row.bytes is None else f"{row.bytes / 1e6:,.1f}",
             *(_text(column, number) for column in self.columns)]
            for number, row in enumerate(self.rows)
        ]  # fmt: skip

    def titles(self) -> list[str]:
        """Return the titles of the table's columns."""
        arrows = {True: "↑", False: "↓"}
        measured = [f"{each.title} {arrows[each.higher_is_better]}" for each in self.columns]
        return ["result", "model", "ran on", "MB", *measured]

    def markdown(self, pictures: Sequence[str] = ()) -> str:
        """Return the table, what to know of it, and ``pictures`` (names of files beside it)."""
        parts = ["# Results side by side", table(self.titles(), self.cells())]
        parts += ["\n".join(f"- {note}" for note in self.notes), *(f"![{name}]({name})" for name in pictures)]
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return {
            "results": [
                {"name": row.name, "model": row.model, "runs_on": row.runs_on, "bytes": row.bytes} for row in self.rows
            ],
            "columns": [
                {
                    "title": column.title, "name": column.name, "settings": column.settings,
                    "higher_is_better": column.higher_is_better,
                    "values": [None if each is None else each.value for each in column.values],
                    "errors": [None if each is None else each.error for each in column.values],
                }
                for column in self.columns
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def compare(files: Sequence[Path]) -> Comparison:
    """Return what `wf eval --json` wrote into ``files``, side by side.

    Raises: InputError for fewer than two files, or one that holds no result.
    """
    if len(files) < 2:
        raise InputError(f"compare: found {len(files)} result, at least two are needed (files of wf eval --json)")
    names = _names(files)
    rows = tuple(_row(name, file) for name, file in zip(names, files, strict=True))
    ways: dict[str, list[str]] = {}
    for row in rows:
        for figure in row.figures:
            known = ways.setdefault(figure.name, [])
            if _way(figure) not in known:
                known.append(_way(figure))
    columns = tuple(_column(name, number, many, rows) for name, many in ways.items() for number in range(len(many)))
    return Comparison(rows, columns, tuple(_notes(columns)))


def _notes(columns: Sequence[Column]) -> list[str]:
    """Return how each column was measured; first what does not compare, and in what it differs."""
    named: dict[str, list[Column]] = {}
    for column in columns:
        named.setdefault(column.name, []).append(column)
    found = []
    for name, many in named.items():
        if len(many) > 1:
            keys = dict.fromkeys(key for column in many for key in column.settings)
            apart = [key for key in keys if len({json.dumps(column.settings.get(key)) for column in many}) > 1]
            ways = f"{name} was measured in {len(many)} ways that do not compare"
            found.append(f"{ways}; they differ in {', '.join(apart) or 'which way is better'}.")
    found += [f"{column.title}: {settings_text(column.settings)}" for column in columns if column.settings]
    return [
        *found,
        "Behind ± stands one standard error, as for a new text or new questions. Two results of one column saw the "
        "same ones, so their difference is known better than that.",
        "Between asterisks stands the best of a column; ↑ more is better, ↓ less.",
    ]


def _column(name: str, number: int, ways: Sequence[str], rows: Sequence[Row]) -> Column:
    values = tuple(
        next((each for each in row.figures if each.name == name and _way(each) == ways[number]), None) for row in rows
    )
    one = next(each for each in values if each is not None)
    title = name if len(ways) == 1 else f"{name} [{number + 1}]"
    return Column(title, name, one.settings, one.higher_is_better, values)


def _way(figure: Figure) -> str:
    return json.dumps([figure.settings, figure.higher_is_better], sort_keys=True)


def _text(column: Column, row: int) -> str:
    found = column.values[row]
    if found is None:
        return ""
    text = value_text(found.value, found.error)
    return f"**{text}**" if found.value == column.best else text


def _names(files: Sequence[Path]) -> list[str]:
    """Return the files' stems, or as much of their paths as tells them apart."""
    for parts in range(1, max(len(file.parts) for file in files) + 1):
        names = ["/".join(file.with_suffix("").parts[-parts:]) for file in files]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"compare: the same file is given twice among {', '.join(map(str, files))}")


def _row(name: str, file: Path) -> Row:
    document = parse_json(read_bytes(file), str(file))
    if not isinstance(document, dict) or not isinstance(document.get("model"), str):
        raise InputError(f"{file}: is no result; write one with wf eval MODEL --json {file}")
    try:
        figures = tuple(_figure(each) for each in document.get("figures") or _older(document))
        size = document.get("bytes")
        row = Row(name, document["model"], str(document["runs_on"]), None if size is None else int(size), figures)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file}: the result is damaged ({type(error).__name__}: {error})") from error
    if not figures:
        raise InputError(f"{file}: the result holds no figures")
    return row


def _figure(found: Mapping[str, Any]) -> Figure:
    value, error = float(found["value"]), found["error"]
    if not math.isfinite(value) or not isinstance(found["settings"], dict):
        raise ValueError(f"figure {found['name']!r} has the value {value}")
    return Figure(str(found["name"]), value, None if error is None else float(error), bool(found["higher_is_better"]),
                  found["settings"])  # fmt: skip


def _older(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of a result from before results had a list of them."""
    if "perplexity" not in document:
        return []
    same = {name: document[name] for name in ("text", "window", "tokens")} | {"stride": document.get("stride")}
    names = {"perplexity": "perplexity", "bits_per_byte": "bits a byte"}
    return [
        {"name": name, "value": document[key], "error": None, "higher_is_better": False, "settings": same}
        for key, name in names.items()
        if document.get(key) is not None
    ]
