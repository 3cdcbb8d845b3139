"""The two pictures of the card: training, and quality against the teacher by kind of text."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from card_figures import Figures
from held_text import UNSEEN
from verdict import PERPLEXITY_RATIO, ratio

_COLOURS = {"calibrated-row": "#c9ccd1", "calibrated-group": "#8a8f98", "layerwise": "#6b9ac4", "distilled": "#f2c094",
            "distilled-again": "#e8985e", "blocks": "#c2410c"}  # fmt: skip
# What each training stage logs of how far it is from the teacher, and of the text itself.
_DISTANCE = ("logits_kd/value", "clean_half_kd/value")
_TEXT = ("next_token/ce", "next_token/value")
_POINTS = 60  # of a curve, each the mean of the steps around it


def draw(figures: Figures, out: Path) -> list[str]:
    """Write training.png and quality.png below ``out``, where there is something to show; return their names."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, build in (("training.png", _training), ("quality.png", _quality)):
        figure = build(pyplot, figures)
        if figure is not None:
            figure.tight_layout()
            figure.savefig(out / name, dpi=110)
            pyplot.close(figure)
            written.append(name)
    return written


def _training(pyplot: Any, figures: Figures) -> Any:
    curves = {name: rows for name in figures.names if (rows := figures.metrics(name))}
    if not curves:
        return None
    figure, both = pyplot.subplots(1, 2, figsize=(10, 3.8))
    labels = ("KL to the teacher, nats per token", "loss on the text itself, nats per token")
    for axes, keys, label in zip(both, (_DISTANCE, _TEXT), labels, strict=True):
        begun = 0.0
        for name, rows in curves.items():
            points = smoothed(
                [(begun + row["tokens"], value) for row in rows if (value := first(row, keys)) is not None]
            )
            if points:
                axes.plot(*zip(*[(x / 1000, y) for x, y in points], strict=True), label=name, color=_COLOURS.get(name))
            begun += rows[-1]["tokens"]
        axes.set(xlabel="thousand tokens of training", ylabel=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


def first(row: dict[str, Any], keys: tuple[str, ...]) -> float | None:
    """Return the first of some values that a logged step has."""
    return next((float(row[key]) for key in keys if row.get(key) is not None), None)


def smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return means over groups of neighbouring points, at most about _POINTS of them, each at its group's middle."""
    size = max(1, len(points) // _POINTS)
    groups = [points[at : at + size] for at in range(0, len(points) - size + 1, size)]
    return [(statistics.fmean(x for x, _ in group), statistics.fmean(y for _, y in group)) for group in groups]


def _quality(pyplot: Any, figures: Figures) -> Any:
    kinds, names = figures.about["kinds"], figures.names
    figure, axes = pyplot.subplots(figsize=(10, 3.8))
    width = 0.8 / len(names)
    highest = 0.0
    for place, name in enumerate(names):
        for at, kind in enumerate(kinds):
            found = ratio(figures.losses[name], figures.losses["teacher"], [kind])
            if found is None:
                continue
            x = at + (place - (len(names) - 1) / 2) * width
            error = found.error or 0.0
            label = name if at == 0 else None
            axes.bar(x, found.value, width * 0.92, yerr=error, capsize=2, color=_COLOURS.get(name), label=label)
            axes.annotate(f"{found.value:.2f}", (x, found.value + error), ha="center", va="bottom", fontsize=7)
            highest = max(highest, found.value + error)
    axes.axhline(1.0, color="#333", lw=1)
    axes.axhline(PERPLEXITY_RATIO, color="#2a7d3f", lw=1, ls="--", label=f"target, {PERPLEXITY_RATIO}")
    shown = [f"{kind}\n(never trained on)" if kind in UNSEEN else kind for kind in kinds]
    axes.set_xticks(range(len(kinds)), shown)
    axes.set(ylabel="perplexity, times the teacher's", ylim=(0.8, highest * 1.12))
    axes.legend(fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.18), frameon=False)
    axes.grid(alpha=0.3, axis="y")
    return figure
