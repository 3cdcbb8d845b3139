"""Pictures of a comparison: every column as bars with error bars, and quality against the bytes of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wrinklefree.eval.compare import Column, Comparison

_ACROSS = 3  # panels beside each other
_MOST_PANELS = 24
_NAME_CHARACTERS = 28
# Told apart with any colour vision (Okabe and Ito).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442", "#000000")


def draw(comparison: Comparison, directory: Path) -> list[str]:
    """Write `figures.png`, and `bytes.png` where sizes of two results are known; return the names of those written."""
    found = []
    bars = [column for column in comparison.columns if column.best is not None][:_MOST_PANELS]
    sized = [column for column in bars if _sizes(comparison, column) > 1]
    if bars:
        _panels(comparison, bars, directory / "figures.png", _bars)
        found.append("figures.png")
    if sized:
        _panels(comparison, sized, directory / "bytes.png", _points)
        found.append("bytes.png")
    return found


def _sizes(comparison: Comparison, column: Column) -> int:
    """Return how many different sizes have a value."""
    pairs = zip(comparison.rows, column.values, strict=True)
    return len({row.bytes for row, value in pairs if row.bytes and value is not None})


def _panels(comparison: Comparison, columns: list[Column], file: Path, panel: Any) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    height = 1.3 + 0.32 * len(comparison.rows) if panel is _bars else 3.6
    figure, axes = pyplot.subplots(down, across, figsize=(4.6 * across + 1.2, height * down + 0.4), squeeze=False)
    for axis, column in zip(axes.flat, columns, strict=False):
        panel(axis, comparison, column)
        axis.set_title(f"{column.title} ({'more' if column.higher_is_better else 'less'} is better)", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(columns) :]:
        axis.set_visible(False)
    figure.supxlabel("error bars: one standard error up and down", fontsize=8, color="#555")
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _bars(axis: Any, comparison: Comparison, column: Column) -> None:
    for number, found in enumerate(column.values):
        if found is None:
            across = axis.get_yaxis_transform()
            axis.text(0.01, number, "not measured", va="center", fontsize=7, color="#777", transform=across)
            continue
        colour = _COLOURS[number % len(_COLOURS)]
        axis.barh(number, found.value, xerr=found.error, color=colour, height=0.7, error_kw={"capsize": 3, "lw": 1})
        axis.annotate(f"{found.value:,.4g}", (0, number), (4, 0), textcoords="offset points", va="center", fontsize=8,
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.85})  # fmt: skip
    axis.set_yticks(range(len(comparison.rows)), [_short(row.name) for row in comparison.rows])
    axis.set_ylim(len(comparison.rows) - 0.5, -0.5)  # in the table's order


def _points(axis: Any, comparison: Comparison, column: Column) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for number, (row, found) in enumerate(zip(comparison.rows, column.values, strict=True)):
        if found is None or not row.bytes:
            continue
        size, colour = row.bytes / 1e6, _COLOURS[number % len(_COLOURS)]
        axis.errorbar(size, found.value, yerr=found.error, fmt="o", color=colour, capsize=3)
        place = (7, 6) if number % 2 else (7, -12)  # neighbours are often alike in both
        axis.annotate(_short(row.name), (size, found.value), place, textcoords="offset points", fontsize=8,
                      bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8})  # fmt: skip
    axis.set_xscale("log")
    axis.margins(0.25, 0.15)
    axis.set_xlabel("MB of weights (logarithmic)", fontsize=8)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_minor_locator(NullLocator())


def _short(name: str) -> str:
    return name if len(name) <= _NAME_CHARACTERS else "…" + name[1 - _NAME_CHARACTERS :]
