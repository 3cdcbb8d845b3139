"""The pictures beside the tables: what depends on steps is drawn over steps."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from choices import BASE as _BASE
from figures import final_loss, paired, read, step_seconds

_SMOOTHED = 8  # steps of a training curve's moving average
_LABELS = {"xlabel": "steps in all", "ylabel": "held-out loss, nats per token"}


def draw(results: Path) -> None:
    """Write a picture for each table that has results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name, build in (
        ("stage1.9-length", _lengths),
        ("scheduling", _schedules),
        ("high-rates", _rates),
        ("choice-rates", _tried_rates),
        ("choices", _choices),
    ):
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


def _tried_rates(pyplot: Any, runs: dict[str, list[dict[str, Any]]]) -> Any:
    """Where each peak rate ends, by optimizer and start: every seed a mark, a line through their means."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4.2))
    kinds = list(dict.fromkeys(each[0]["facts"]["of"] for each in runs.values()))
    for kind, colour in zip(kinds, pyplot.get_cmap("tab10").colors, strict=False):
        rows = sorted((each[0]["facts"]["rate"], each) for each in runs.values() if each[0]["facts"]["of"] == kind)
        for plot, value in ((left, final_loss), (right, lambda run: run["stages"][-1]["held_out"]["kl"])):
            means = [_mean_and_sd([value(run) for run in each])[0] for _, each in rows]
            plot.plot([rate for rate, _ in rows], means, color=colour, lw=1, label=kind)
            for rate, each in rows:
                plot.plot([rate] * len(each), [value(run) for run in each], "o", color=colour, ms=4)
    left.set(xscale="log", xlabel="peak rate of the matrices", ylabel=_LABELS["ylabel"])
    right.set(xscale="log", yscale="log", xlabel="peak rate of the matrices", ylabel="KL to the teacher, held out")
    left.legend(fontsize=8)
    for plot in (left, right):
        plot.grid(alpha=0.3)
    return figure


def _choices(pyplot: Any, runs: dict[str, list[dict[str, Any]]]) -> Any:
    """The difference of every seed to the arm that it is compared with, in loss and in divergence."""
    figure, plots = pyplot.subplots(1, 2, figsize=(11.5, 4.8), sharey=True)
    arms = [arm for arm, each in runs.items() if each[0]["facts"]["question"] and each[0]["facts"]["against"] in runs]
    values = (final_loss, lambda run: run["stages"][-1]["held_out"]["kl"])
    apart = {
        arm: [paired(runs[arm], runs[runs[arm][0]["facts"]["against"]], value) for value in values] for arm in arms
    }
    arms.sort(key=lambda arm: statistics.fmean(apart[arm][0] or [0.0]))
    for column, (plot, what) in enumerate(zip(plots, ("held-out loss", "KL to the teacher"), strict=True)):
        for row, arm in enumerate(arms):
            found = apart[arm][column]
            plot.plot(found, [row] * len(found), "o", color="tab:blue", ms=4, alpha=0.7)
            if found:
                plot.plot(statistics.fmean(found), row, "|", color="black", ms=14)
        plot.axvline(0, color="black", lw=0.8)
        plot.set(xlabel=f"{what}: difference, nats (right: worse)")
        plot.grid(alpha=0.3)
    labels = [
        f"{arm} (against {against})" if (against := runs[arm][0]["facts"]["against"]) != _BASE else arm for arm in arms
    ]
    plots[0].set_yticks(range(len(arms)), labels, fontsize=8)
    return figure


def _every_step(run: dict[str, Any]) -> list[float]:
    return [x for stage in run["stages"] for x in stage["curve"]["ce"]]


def _smooth(values: list[float]) -> list[float]:
    return [statistics.fmean(values[max(end - _SMOOTHED, 0) : end]) for end in range(1, len(values) + 1)]


def _mean_and_sd(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
