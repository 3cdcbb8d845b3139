"""The pictures beside the tables: what depends on steps is drawn over steps."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from figures import final_loss, read, step_seconds

_SMOOTHED = 8  # steps of a training curve's moving average
_LABELS = {"xlabel": "steps in all", "ylabel": "held-out loss, nats per token"}


def draw(results: Path) -> None:
    """Write a picture for each table that has results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, build in (("stage1.9-length", _lengths), ("scheduling", _schedules), ("high-rates", _rates)):
        runs = read(results, name)
        if runs:
            figure = build(pyplot, runs)
            figure.tight_layout()
            figure.savefig(results / f"{name}.png", dpi=110)
            pyplot.close(figure)


def _lengths(pyplot: Any, runs: dict[str, list[dict[str, Any]]]) -> Any:
    """Both ways to spend steps, over steps and over processor time."""
    every = [run for each in runs.values() for run in each]
    seconds = {"stage 1.9": step_seconds(every, "stage 1.9"), "stage 2": step_seconds(every, "stage 2")}
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True)
    for plot, costs in zip(axes, ({"stage 1.9": 1.0, "stage 2": 1.0}, seconds), strict=True):
        for staged, style in ((False, "o-"), (True, "s--")):
            points = []
            for each in runs.values():
                facts = each[0]["facts"]
                if bool(facts["stage1_9"]) == staged:
                    x = facts["stage1_9"] * costs["stage 1.9"] + facts["stage2"] * costs["stage 2"]
                    points.append((x, *_mean_and_sd([final_loss(run) for run in each])))
            label = "Stage 1.9, then Stage 2" if staged else "Stage 2 alone"
            x, mean, sd = zip(*sorted(points), strict=True)
            plot.errorbar(x, mean, sd, fmt=style, capsize=3, label=label)
        plot.grid(alpha=0.3)
    axes[0].set(**_LABELS)
    axes[1].set(xlabel="processor seconds of training")
    axes[0].legend()
    return figure


def _schedules(pyplot: Any, runs: dict[str, list[dict[str, Any]]]) -> Any:
    """Training curves, mean over seeds, and where they end on held-out text, in the same colours."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.5, 4.6), width_ratios=(3, 2))
    order = sorted(runs, key=lambda arm: _mean_and_sd([final_loss(run) for run in runs[arm]])[0])
    colours = dict(zip(order, pyplot.get_cmap("tab10").colors, strict=False))
    longest = max(len(_every_step(each[0])) for each in runs.values())
    for row, arm in enumerate(order):
        mean = [statistics.fmean(values) for values in zip(*map(_every_step, runs[arm]), strict=False)]
        x = range(longest - len(mean), longest)
        left.plot(x, _smooth(mean), color=colours[arm], lw=1.4, ls="-" if len(runs[arm][0]["stages"]) > 1 else "--")
        middle, sd = _mean_and_sd([final_loss(run) for run in runs[arm]])
        right.errorbar(middle, row, xerr=sd, fmt="o", color=colours[arm], capsize=3)
        right.plot([final_loss(run) for run in runs[arm]], [row] * len(runs[arm]), "|", color=colours[arm], ms=9)
    left.set(
        xlabel=f"steps, ending together; means over {_SMOOTHED}; dashed: no Stage 1.9",
        ylabel="training cross-entropy at the strength of the step",
    )
    right.set_yticks(range(len(order)), order, fontsize=8)
    for label, arm in zip(right.get_yticklabels(), order, strict=True):
        label.set_color(colours[arm])
    right.invert_yaxis()
    right.set(xlabel=_LABELS["ylabel"])
    for plot in (left, right):
        plot.grid(alpha=0.3)
    return figure


def _rates(pyplot: Any, runs: dict[str, list[dict[str, Any]]]) -> Any:
    """Training curves of every seed."""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    colours = dict(zip(sorted(runs), pyplot.get_cmap("tab10").colors, strict=False))
    for arm in sorted(runs):
        for number, run in enumerate(runs[arm]):
            label = arm if number == 0 else None
            curve = run["stages"][-1]["curve"]
            axes[0].plot(curve["step"], curve["ce"], color=colours[arm], lw=1, alpha=0.8, label=label)
            axes[1].semilogy(curve["step"], curve["grad_norm"], color=colours[arm], lw=1, alpha=0.8)
    axes[0].set(xlabel="step", ylabel="training cross-entropy, nats per token")
    axes[0].legend(fontsize=7)
    axes[1].set(xlabel="step", ylabel="gradient norm before clipping")
    for plot in axes:
        plot.grid(alpha=0.3)
    return figure


def _every_step(run: dict[str, Any]) -> list[float]:
    return [x for stage in run["stages"] for x in stage["curve"]["ce"]]


def _smooth(values: list[float]) -> list[float]:
    return [statistics.fmean(values[max(end - _SMOOTHED, 0) : end]) for end in range(1, len(values) + 1)]


def _mean_and_sd(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
