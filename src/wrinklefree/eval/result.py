"""What one evaluation found: a document with everything that is needed to repeat it, as JSON and as Markdown.

A `Part` is one kind of measurement. It adds keys of its own to the document, and its main `Figure`s to the list
``figures``, which is what `eval.compare` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wrinklefree.artifact.markdown import table
from wrinklefree.artifact.provenance import provenance

if TYPE_CHECKING:
    from wrinklefree.eval.scorer import Scorer

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Figure:
    """A number to be compared. ``settings``: what must be the same where two are put beside each other.

    ``error``: its standard error, None where it has none.
    """

    name: str
    value: float
    error: float | None
    higher_is_better: bool
    settings: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Part(Protocol):
    """The figures of one kind of measurement."""

    def to_json(self) -> dict[str, Any]:
        """Return the keys that it adds to the document."""
        ...

    def figures(self) -> Sequence[Figure]:
        """Return what is worth a row of a table."""
        ...

    def lines(self) -> Sequence[str]:
        """Return what was found in words, for the terminal."""
        ...


@dataclass(frozen=True)
class Result:
    """``how``: the way the model ran. ``weights``: ``bytes`` and ``sha256`` of its files, where they are at hand.

    ``settings``: of the command, as it used them.
    """

    model: str
    runs_on: str
    how: Mapping[str, Any]
    weights: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: Sequence[Part]

    @classmethod
    def of(cls, scorer: Scorer, settings: Mapping[str, Any], parts: Sequence[Part]) -> Result:
        """Return the result of measurements of a scorer."""
        return cls(scorer.name, scorer.runs_on, scorer.describe(), weights_of(scorer.name), settings, parts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        found: dict[str, Any] = {"model": self.model, "runs_on": self.runs_on, "how": dict(self.how)}
        found |= {"bytes": self.weights.get("bytes"), "sha256": self.weights.get("sha256")}
        for part in self.parts:
            found |= part.to_json()
        found["figures"] = [figure.to_json() for part in self.parts for figure in part.figures()]
        return {**found, "settings": dict(self.settings), "provenance": provenance()}


def markdown(document: Mapping[str, Any]) -> str:
    """Return a result's document (`Result.to_json`) for people."""
    rows = [
        (each["name"], value_text(each["value"], each["error"]), settings_text(each["settings"]))
        for each in document["figures"]
    ]
    facts = [
        ("ran on", f"{document['runs_on']} ({settings_text(document['how'])})"),
        ("bytes of weights", "not known" if document["bytes"] is None else f"{document['bytes']:,}"),
        ("sha256 of weights", document["sha256"] or "not known"),
        *((name, _plain(value)) for name, value in document["settings"].items() if value is not None),
    ]
    origin = document["provenance"]
    machine = origin["machine"]
    facts += [
        ("command", " ".join(origin["command"])),
        ("wrinklefree", f"{origin['wrinklefree']}, commit {origin['commit']}{', changed' * origin['changed']}"),
        ("packages", settings_text(origin["packages"])),
        ("machine", f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"),
        ("time", origin["time"]),
    ]
    return "\n\n".join([
        f"# {document['model']}",
        table(("figure", "value", "measured with"), rows),
        "Behind ± stands one standard error.",
        "## To repeat it",
        table(("", ""), facts),
    ]) + "\n"  # fmt: skip


def value_text(value: float, error: float | None) -> str:
    """Return a figure with its standard error, four significant digits or four decimals."""
    digits = 4 if abs(value) < 100 else 2
    spread = "" if error is None else f" ± {error:.{digits}f}"
    return f"{value:,.{digits}f}{spread}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """Return settings on one line; what is None was not set."""
    return ", ".join(f"{name} {_plain(value)}" for name, value in settings.items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value)


def weights_of(source: str) -> dict[str, Any]:
    """Return ``bytes`` and ``sha256`` of a model's weight files in the order of their names; {} where none are here."""
    path = Path(source)
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix in _WEIGHTS)
    else:
        files = [path] if path.is_file() else []
    if not files:
        return {}
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(_READ_BYTES):
                digest.update(block)
    return {"bytes": sum(file.stat().st_size for file in files), "sha256": digest.hexdigest()}
