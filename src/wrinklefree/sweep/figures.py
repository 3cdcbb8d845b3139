"""Reading what a stage measured: its JSON result and its metrics.jsonl, which grows while it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import read_json
from wrinklefree.errors import InputError
from wrinklefree.sweep.space import Figure, Stage

METRICS = "metrics.jsonl"
MOST_POINTS = 400


class MissingFigureError(RuntimeError):
    """A stage ended well and did not leave a number that its space names."""


class Metrics:
    """A metrics.jsonl file, read from where the last look ended; a step that stands twice has its later value."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._steps: dict[str, dict[float, float]] = {}

    def read(self) -> bool:
        """Take in the whole lines that are new; return whether there were any."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(line)
        return bool(whole)

    def series(self, metric: str) -> list[tuple[float, float]]:
        """Return (step, value) pairs, ascending by step."""
        return sorted(self._steps.get(metric, {}).items())

    def names(self) -> list[str]:
        return sorted(self._steps)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            step = float(values.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # half a line of a process that was killed
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._steps.setdefault(name, {})[step] = float(value)


def thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most `MOST_POINTS` points of a curve, evenly spread, the first and the last among them."""
    if len(curve) <= MOST_POINTS:
        return curve
    return [curve[round(i * (len(curve) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def read_figures(stage: Stage, result: Path, metrics: Metrics, partial: bool = False) -> dict[str, float]:
    """Return "STAGE.figure" -> number. ``partial``: those that are there already, of a stage that was stopped.

    Raises: MissingFigureError for one that is missing, no number, or not finite.
    """
    document: dict[str, Any] | None = None
    found: dict[str, float] = {}
    for name, figure in stage.figures.items():
        try:
            if figure.metric is not None:
                found[f"{stage.name}.{name}"] = _of_metric(figure, metrics)
            elif not partial:
                document = _document(result) if document is None else document
                found[f"{stage.name}.{name}"] = _of_document(figure, document, result)
        except MissingFigureError as error:
            if not partial:
                raise MissingFigureError(f"{stage.name}.{name}: {error}") from error
    return found


def _of_metric(figure: Figure, metrics: Metrics) -> float:
    series = metrics.series(str(figure.metric))
    if not series:
        there = ", ".join(metrics.names()) or "nothing"
        raise MissingFigureError(f"{METRICS} has no {figure.metric!r} (it has {there})")
    values = [value for _, value in series[-figure.last :]]
    return _finite(sum(values) / len(values), f"{METRICS}: {figure.metric}")


def _document(result: Path) -> dict[str, Any]:
    try:
        return read_json(result)
    except InputError as error:
        raise MissingFigureError(str(error)) from error


def _of_document(figure: Figure, document: Mapping[str, Any], result: Path) -> float:
    value: Any = document
    for depth, key in enumerate(figure.path):
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else f"{value!r:.100}"
            place = ".".join(figure.path[:depth]) or "it"
            raise MissingFigureError(f"{result} has no {'.'.join(figure.path)} ({place} has {there:.500})")
    return _finite(value, f"{result}: {'.'.join(figure.path)}")


def _finite(value: Any, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MissingFigureError(f"{place} is {value!r:.100}, a finite number is needed")
    return float(value)
