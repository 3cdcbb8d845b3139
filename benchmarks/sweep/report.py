"""Tables and the picture of a comparison: python -m benchmarks.sweep.report RESULTS.json... --picture FILE.png"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

METHODS = ("random", "bayesian")
_COLOURS = {"random": "#2563eb", "bayesian": "#c2410c"}


def best_so_far(values: Sequence[float | None]) -> list[float]:
    """Return the least value up to each trial, by number; a trial without one changes nothing."""
    found, least = [], float("inf")
    for value in values:
        least = least if value is None else min(least, value)
        found.append(least)
    return found


def of_method(record: dict[str, Any], method: str) -> list[dict[str, Any]]:
    return sorted((s for s in record["studies"] if s["method"] == method), key=lambda s: s["seed"])


def tables(record: dict[str, Any]) -> list[str]:
    """Return Markdown lines: the best of every seed, and the mean over seeds after some numbers of trials."""
    random, bayesian = (of_method(record, method) for method in METHODS)
    seeds = [study["seed"] for study in bayesian if study["seed"] in {other["seed"] for other in random}]
    pairs = [(seed, *(next(s for s in of if s["seed"] == seed) for of in (random, bayesian))) for seed in seeds]
    trials = len(pairs[0][1]["values"])
    rows = [
        [str(seed), f"{r['best']:.4f}", f"{b['best']:.4f}", f"{b['best'] - r['best']:+.4f}"] for seed, r, b in pairs
    ]
    won = sum(b["best"] < r["best"] for _, r, b in pairs)
    marks = sorted({trials // 3, trials // 2, 3 * trials // 4, trials})
    means = [
        [method, *(_mean_at(of, mark) for mark in marks)]
        for method, of in zip(METHODS, (random, bayesian), strict=True)
    ]
    return [
        f"{trials} trials a study; Bayesian is better in {won} of {len(pairs)} seeds.",
        "",
        *_table(("seed", "random", "bayesian", "difference"), rows),
        "",
        "Best so far, mean over seeds ± standard deviation:",
        "",
        *_table(("method", *(f"{mark} trials" for mark in marks)), means),
    ]


def _mean_at(studies: Sequence[dict[str, Any]], trials: int) -> str:
    values = [best_so_far(study["values"])[trials - 1] for study in studies]
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else " (1 seed)")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows)]


def picture(records: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the best so far: thin lines are seeds, thick ones their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, grid = pyplot.subplots(
        1, len(records), figsize=(6.2 * len(records), 4.4), squeeze=False, layout="constrained"
    )
    for axes, record in zip(grid[0], records, strict=True):
        for method in METHODS:
            lines = [best_so_far(study["values"]) for study in of_method(record, method)]
            numbers = range(1, len(lines[0]) + 1)
            for line in lines:
                axes.step(numbers, line, where="post", color=_COLOURS[method], lw=0.8, alpha=0.35)
            mean = [statistics.mean(column) for column in zip(*lines, strict=True)]
            axes.step(
                numbers,
                mean,
                where="post",
                color=_COLOURS[method],
                lw=2.4,
                label=f"{method}, {len(lines)} seed{'s' * (len(lines) > 1)}",
            )
        axes.set(xlabel="trials", ylabel="best so far (less is better)", title=record["what"])
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--picture", type=Path, required=True)
    given = parser.parse_args()
    records = [json.loads(path.read_text()) for path in given.results]
    for record in records:
        print(f"### {record['what']}\n")
        print("\n".join(tables(record)), "\n")
    picture(records, given.picture)


if __name__ == "__main__":
    main()
