"""What all pictures of a study share: colours, an empty figure, a file, and a scale that lets the values be seen."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wrinklefree.artifact.files import write_bytes
from wrinklefree.errors import MissingDependencyError
from wrinklefree.sweep.space import CHOICE, Parameter, Value, text_of
from wrinklefree.sweep.trial import COMPLETE, FAILED, RUNNING, STOPPED

# Told apart by people who see colours differently, and in print.
BEST, STRONG, GREY = "#111827", "#c2410c", "#9ca3af"
ORIGINS = {"sobol": "#8a8f98", "bayesian": STRONG, "random": "#2563eb", "given": "#15803d"}
STATES = {COMPLETE: "#3f7cac", STOPPED: "#e0a458", FAILED: "#b3261e", "lost": BEST, RUNNING: "#a3b18a"}
_LOG_FROM = 30.0
_FAR = 4.0
_DPI = 110


def new_figure(width_inches: float, height_inches: float) -> Any:
    """Return a matplotlib figure that draws without a screen.

    Raises: MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the report's pictures need matplotlib: pip install 'wrinklefree[sweep]'"
        ) from error
    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(path: Path, figure: Any) -> None:
    """Write a figure as a PNG file whose bytes depend on the figure alone."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def wanted(figure: str, minimize: bool) -> str:
    return f"{figure} ({'less' if minimize else 'more'} is better)"


def far_edge(values: Sequence[float], minimize: bool) -> float | None:
    """Return the value beyond which points stand on the picture's edge, None where all can be shown.

    It lies four times as far from the best as the median does. Positive values over more than a factor of 30 get a
    logarithmic scale and no edge (`spans_decades`).
    """
    found = np.array([value for value in values if math.isfinite(value)]) * (1 if minimize else -1)
    if len(found) < 3 or spans_decades(values):
        return None
    best, middle, worst = np.quantile(found, (0.0, 0.5, 1.0))
    edge = best + _FAR * (middle - best)
    return None if middle == best or worst <= edge else float(edge if minimize else -edge)


def spans_decades(values: Sequence[float]) -> bool:
    found = [value for value in values if math.isfinite(value)]
    return bool(found) and min(found) > 0 and max(found) / min(found) > _LOG_FROM


def clip(values: Sequence[float], edge: float | None, minimize: bool) -> np.ndarray:
    """Return the values with what lies beyond the edge put onto it."""
    found = np.array(values, dtype=float)
    return found if edge is None else (np.minimum(found, edge) if minimize else np.maximum(found, edge))


def scale(axes: Any, values: Sequence[float], minimize: bool, direction: str = "y") -> float | None:
    """Make an axis logarithmic, or cut it at the far edge and say so; return the edge."""
    edge = far_edge(values, minimize)
    if spans_decades(values):
        getattr(axes, f"set_{direction}scale")("log")
    if edge is not None:
        found = [value for value in values if math.isfinite(value)]
        best = min(found) if minimize else max(found)
        getattr(axes, f"set_{direction}lim")(*sorted((best - 0.08 * (edge - best), edge)))
        note = f"points on the {('top' if minimize else 'bottom') if direction == 'y' else 'right'} edge lie beyond it"
        axes.text(1.0, 1.01, note, transform=axes.transAxes, ha="right", va="bottom", fontsize=7, color="#4b5563")
    return edge


def marks(parameter: Parameter) -> list[tuple[Value, str]]:
    """Return the values to name on a parameter's axis, with their words: all choices, or both ends and the middle."""
    if parameter.kind == CHOICE:
        return [(value, text_of(value)) for value in parameter.values]
    low, high = parameter.low, parameter.high
    middle = math.sqrt(low * high) if parameter.log else (low + high) / 2
    return [(value, f"{value:.3g}") for value in (low, middle, high)]
