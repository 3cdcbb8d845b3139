"""Pictures of what the parameters do: each alone, how much each matters, and all together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from wrinklefree.sweep.drawing import BEST, GREY, STRONG, clip, far_edge, marks, new_figure, scale
from wrinklefree.sweep.findings import Findings, Importance, place
from wrinklefree.sweep.space import CHOICE, Parameter
from wrinklefree.sweep.trial import Trial

MOST_SHOWN = 12
_OFF = -0.14


def used(study: Findings, importances: Sequence[Importance]) -> list[Parameter]:
    """Return the parameters that pictures show, in the space's order: the most important ones where there are many."""
    parameters = [p for p in study.space.parameters if any(p.name in trial.parameters for trial in study.measured())]
    order = [each.name for each in importances]
    ranked = sorted(parameters, key=lambda p: order.index(p.name) if p.name in order else len(order))
    chosen = {parameter.name for parameter in ranked[:MOST_SHOWN]}
    return [parameter for parameter in parameters if parameter.name in chosen]


def slices(study: Findings, importances: Sequence[Importance]) -> Any:
    """Each parameter against the objective, coloured by trial; a dotted line where the best trial stands."""
    parameters = used(study, importances)
    columns = min(len(parameters), 4 if len(parameters) > 6 else 3)
    rows = math.ceil(len(parameters) / columns)
    figure = new_figure(3.5 * columns + 0.9, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(parameters) :]:
        axes.set_axis_off()
    minimize = study.minimizes(study.figures[0])
    edge = scale(grid[0, -1], [study.value(trial) for trial in study.measured()], minimize)
    shown = None
    for axes, parameter in zip(grid.flat, parameters, strict=False):
        having = [trial for trial in study.measured() if parameter.name in trial.parameters]
        shown = axes.scatter(
            _spread(parameter, having), clip([study.value(t) for t in having], edge, minimize), s=24, zorder=3,
            c=[t.number for t in having], cmap="viridis", vmin=0, vmax=study.trials[-1].number, clip_on=False,
        )  # fmt: skip
        _dress(axes, parameter, study.ranked()[:1])
    for row in grid:
        row[0].set_ylabel(study.figures[0])
    figure.colorbar(shown, ax=grid, label="trial", aspect=35, pad=0.01)
    figure.suptitle(f"{study.space.name}: each parameter alone (dotted: the best trial)", fontsize=11)
    return figure


def _spread(parameter: Parameter, trials: Sequence[Trial]) -> list[float]:
    """Return where trials stand; those of one choice side by side, so that none hides another."""
    places, seen = [], dict[float, int]()
    for trial in trials:
        at = place(parameter, trial.parameters[parameter.name])
        if parameter.kind == CHOICE:
            seen[at] = seen.get(at, 0) + 1
            at += 0.22 * math.sin(2.4 * seen[at])
        places.append(at)
    return places


def _dress(axes: Any, parameter: Parameter, best: Sequence[Trial]) -> None:
    named = marks(parameter)
    at = [place(parameter, value) for value, _ in named]
    axes.set_xticks(at, [word for _, word in named], fontsize=8)
    margin = 0.5 if parameter.kind == CHOICE else 0.04 * (at[-1] - at[0])
    axes.set_xlim(at[0] - margin, at[-1] + margin)
    for trial in best:
        if parameter.name in trial.parameters:
            axes.axvline(place(parameter, trial.parameters[parameter.name]), color=BEST, lw=0.9, ls=":", zorder=1)
    axes.set_xlabel(parameter.name + (" (log)" if parameter.log else ""), fontsize=9)
    axes.grid(alpha=0.25)


def bars(study: Findings, importances: Sequence[Importance]) -> Any:
    """Importance as bars; grey what chance explains as well."""
    shown = list(importances)[: 2 * MOST_SHOWN][::-1]
    figure = new_figure(8, 1.7 + 0.36 * len(shown))
    axes = figure.subplots()
    places = range(len(shown))
    axes.barh(places, [each.share for each in shown], color=[STRONG if e.shown else GREY for e in shown], height=0.62)
    axes.scatter(
        [each.chance for each in shown], places, marker="|", s=220, color=BEST, zorder=3,
        label="95 % of shuffled values explain less than this",
    )  # fmt: skip
    for at, each in zip(places, shown, strict=True):
        words = f"{each.share:.2f}  ({each.trials} trials)"
        axes.text(max(each.share, each.chance) + 0.02, at, words, va="center", fontsize=8)
    axes.set_yticks(places, [each.name for each in shown])
    axes.set(xlim=(0, 1.2), xlabel=f"share of the rank variance of {study.figures[0]} that it explains alone")
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axes.set_title(f"{study.space.name}: which parameters matter", fontsize=11)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def parallel(study: Findings, importances: Sequence[Importance]) -> Any:
    """One line for each trial through its parameters to its value; an absent conditional parameter is "off"."""
    from matplotlib import colormaps

    parameters = used(study, importances)
    minimize = study.minimizes(study.figures[0])
    trials = sorted(study.measured(), key=lambda t: study.value(t) * (-1 if minimize else 1))
    values = [study.value(trial) for trial in trials]
    edge = far_edge(values, minimize)
    heights = clip(values, edge, minimize)
    low, high = float(heights.min()), float(heights.max())
    figure = new_figure(1.5 * (len(parameters) + 1) + 1.5, 5.2)
    axes = figure.subplots()
    best = study.ranked()[:1]
    for rank, (trial, height) in enumerate(zip(trials, heights, strict=True)):
        line = [_height(parameter, trial) for parameter in parameters]
        line.append((height - low) / (high - low) if high > low else 0.5)
        share = rank / max(len(trials) - 1, 1)
        is_best = best == [trial]
        axes.plot(
            range(len(line)), line, color=STRONG if is_best else colormaps["viridis_r"](share), marker="o", ms=3,
            lw=2.8 if is_best else 1.2, alpha=1.0 if is_best else 0.35 + 0.5 * share, zorder=4 if is_best else 2,
        )  # fmt: skip
    for at, parameter in enumerate(parameters):
        named = [(_at(parameter, place(parameter, value)), word) for value, word in marks(parameter)]
        if any(parameter.name not in trial.parameters for trial in trials):
            named.append((_OFF, "off"))
        _ruler(axes, at, named)
    beyond = "" if edge is None else " or worse"
    ends = [(0.0, f"{low:.4g}" + ("" if minimize else beyond)), (1.0, f"{high:.4g}" + (beyond if minimize else ""))]
    _ruler(axes, len(parameters), ends if high > low else [(0.5, f"{low:.4g}")])
    names = [*(parameter.name for parameter in parameters), study.figures[0]]
    axes.set_xticks(range(len(names)), [name.replace(".", ".\n", 1) for name in names], fontsize=9)
    axes.tick_params(length=0)
    axes.set(xlim=(-0.3, len(parameters) + 0.6), ylim=(-0.2, 1.06), yticks=[])
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{study.space.name}: complete trials; the darker, the better; thick: the best", fontsize=11)
    return figure


def _at(parameter: Parameter, where: float) -> float:
    ends = [place(parameter, value) for value, _ in marks(parameter)]
    return (where - ends[0]) / (ends[-1] - ends[0]) if ends[-1] > ends[0] else 0.5


def _height(parameter: Parameter, trial: Trial) -> float:
    if parameter.name not in trial.parameters:
        return _OFF
    return _at(parameter, place(parameter, trial.parameters[parameter.name]))


def _ruler(axes: Any, at: int, named: Sequence[tuple[float, str]]) -> None:
    axes.plot([at, at], [0, 1], color=GREY, lw=1, zorder=1)
    for height, word in named:
        axes.annotate(
            word, (at, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8, zorder=6,
            bbox={"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8},
        )  # fmt: skip
