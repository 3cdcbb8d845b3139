"""The pictures of a study's report: how the search went, its learning curves, who ran what, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wrinklefree.sweep.drawing import BEST, GREY, ORIGINS, STATES, STRONG, clip, new_figure, save, scale, wanted
from wrinklefree.sweep.findings import Findings, Importance
from wrinklefree.sweep.picture_parameters import bars, parallel, slices
from wrinklefree.sweep.table import CLAIMED, LATE, LOST
from wrinklefree.sweep.trial import FAILED, RUNNING, STOPPED, Trial


def draw_all(directory: Path, study: Findings, importances: Sequence[Importance]) -> list[str]:
    """Write every picture the study has something for into a directory and return the file names.

    Raises: MissingDependencyError without matplotlib.
    """
    several = len(study.measured()) > 1
    pictures: tuple[tuple[str, bool, Callable[[], Any]], ...] = (
        ("history.png", bool(study.measured()), lambda: _history(study)),
        ("slices.png", several, lambda: slices(study, importances)),
        ("importance.png", bool(importances), lambda: bars(study, importances)),
        ("parallel.png", several and len(study.space.parameters) > 1, lambda: parallel(study, importances)),
        ("front.png", len(study.front()) > 0, lambda: _front(study)),
        ("curves.png", any(len(trial.curve) > 1 for trial in study.trials), lambda: _curves(study)),
        ("timeline.png", bool(_spans(study)), lambda: _timeline(study)),
    )
    for name, has, draw in pictures:
        if has:
            save(directory / name, draw())
    return [name for name, has, _ in pictures if has]


def _history(study: Findings) -> Any:
    figure = new_figure(9, 4.8)
    axes = figure.subplots()
    name, measured = study.figures[0], study.measured()
    minimize = study.minimizes(name)
    edge = scale(axes, [study.value(trial) for trial in measured], minimize)

    def points(trials: Sequence[Trial], **style: Any) -> None:
        if trials:
            heights = clip([study.value(trial) for trial in trials], edge, minimize)
            axes.scatter([trial.number for trial in trials], heights, clip_on=False, **style)

    for origin, colour in ORIGINS.items():
        points([t for t in measured if t.origin == origin], s=28, color=colour, label=origin, zorder=3)
    broken = [trial for trial in measured if not study.space.feasible(trial.figures)]
    points(broken, s=90, facecolors="none", edgecolors=STATES[FAILED], label="breaks a constraint", zorder=4)
    for state, marker in ((STOPPED, "v"), (FAILED, "x")):  # they have no final value: they stand on the axis
        numbers = [trial.number for trial in study.trials if trial.state == state]
        if numbers:
            axes.scatter(
                numbers, [0.0] * len(numbers), transform=axes.get_xaxis_transform(), clip_on=False, s=36, zorder=5,
                marker=marker, color=STATES[state], label=state,
            )  # fmt: skip
    best = study.best_so_far()
    if best:
        at, values = zip(*best, (study.trials[-1].number, best[-1][1]), strict=True)
        axes.step(at, values, where="post", color=BEST, lw=1.4, label=f"best so far ({values[-1]:.5g})", zorder=2)
    axes.set(xlabel="trial", ylabel=wanted(name, minimize))
    axes.set_title(f"{study.space.name}: the search", fontsize=11)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    return figure


def _front(study: Findings) -> Any:
    """The first two objectives of the trials that have both; those on the front are named."""
    figure = new_figure(7.2, 5.2)
    axes = figure.subplots()
    up, across = study.figures[:2]
    trials, best = study.measured(across), study.front()
    edges = {
        name: scale(axes, [study.value(trial, name) for trial in trials], study.minimizes(name), direction)
        for name, direction in ((up, "y"), (across, "x"))
    }

    def at(trial: Trial) -> tuple[float, float]:
        x, y = (clip([study.value(trial, n)], edges[n], study.minimizes(n))[0] for n in (across, up))
        return float(x), float(y)

    for trial in trials:
        kept = study.space.feasible(trial.figures)
        if trial not in best:
            axes.scatter(
                *at(trial), s=26, facecolors=GREY if kept else "none", edgecolors=GREY, zorder=2, clip_on=False
            )
    if len(study.figures) == 2:
        # Between two trials of the front the better known value of the other objective holds.
        steps = "steps-post" if study.minimizes(across) else "steps-pre"
        axes.plot(*zip(*sorted(map(at, best)), strict=True), drawstyle=steps, color=STRONG, lw=1.2, zorder=1)
    for trial in best:
        axes.scatter(*at(trial), s=42, color=STRONG, zorder=3, clip_on=False)
        axes.annotate(str(trial.number), at(trial), xytext=(5, 5), textcoords="offset points", fontsize=9, zorder=4)
    axes.set(xlabel=wanted(across, study.minimizes(across)), ylabel=wanted(up, study.minimizes(up)))
    hollow = "; hollow: breaks a constraint" if any(not study.space.feasible(t.figures) for t in trials) else ""
    axes.set_title(f"{study.space.name}: trials that no other one beats{hollow}", fontsize=11, pad=16)
    axes.grid(alpha=0.25)
    return figure


def _curves(study: Findings) -> Any:
    figure = new_figure(9, 4.8)
    axes = figure.subplots()
    shown = [trial for trial in study.trials if len(trial.curve) > 1]
    ranked = study.ranked()
    later = [value for trial in shown for _, value in trial.curve[len(trial.curve) // 4 :] if value is not None]
    minimize = study.minimizes(study.figures[0])
    edge = scale(axes, later, minimize)
    labelled: set[str] = set()
    for trial in shown:
        is_best = bool(ranked) and trial.number == ranked[0].number
        kind = f"best (trial {trial.number})" if is_best else trial.state
        steps, values = zip(*((s, math.nan if v is None else v) for s, v in trial.curve), strict=True)
        colour = BEST if is_best else STATES.get(trial.state, GREY)
        axes.plot(
            steps, values, color=colour, lw=2.2 if is_best else 0.9, alpha=1.0 if is_best else 0.6,
            zorder=4 if is_best else 2, label="_" if kind in labelled else kind,
        )  # fmt: skip
        if trial.state in (STOPPED, FAILED):
            end = clip(values[-1:], edge, minimize)[0]
            axes.scatter(steps[-1], end, marker="v" if trial.state == STOPPED else "x", color=colour, zorder=3)
        labelled.add(kind)
    curve = study.space.curve
    axes.set(xlabel="step", ylabel=f"{curve.metric} of {curve.stage}" if curve else f"{study.figures[0]} while it ran")
    axes.set_title(f"{study.space.name}: learning curves", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _timeline(study: Findings) -> Any:
    """A bar from each time a trial was taken up to the time it ended, or was taken back from its worker."""
    spans = _spans(study)
    start, longest = min(span[2] for span in spans), max(span[3] for span in spans) - min(span[2] for span in spans)
    workers = list(dict.fromkeys(span[0] for span in sorted(spans, key=lambda span: span[2])))
    unit, seconds = ("minutes", 60.0) if longest > 300 else ("seconds", 1.0)
    figure = new_figure(10, 1.5 + 0.42 * len(workers))
    axes = figure.subplots()
    named: set[str] = set()
    for worker, number, begin, end, what in spans:
        left, width = (begin - start) / seconds, max(end - begin, longest / 400) / seconds
        axes.barh(
            workers.index(worker), width, left=left, height=0.7, color=STATES.get(what, GREY), edgecolor="white",
            hatch="///" if what == LOST else None, label="_" if what in named else what, lw=0.6,
        )  # fmt: skip
        named.add(what)
        if width * seconds > longest / 60:
            words = {"ha": "center", "va": "center", "fontsize": 7, "color": "white", "weight": "bold"}
            axes.text(left + width / 2, workers.index(worker), str(number), **words)
    axes.set_yticks(range(len(workers)), [w if len(w) < 34 else f"...{w[-30:]}" for w in workers], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{unit} since the first trial began")
    axes.set_title(f"{study.space.name}: which worker ran which trial", fontsize=11)
    figure.legend(loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def _spans(study: Findings) -> list[tuple[str, int, float, float, str]]:
    """Return (worker, trial, begin, end, how it ended) of every attempt, in the order they ended."""
    begun: dict[int, tuple[str, float]] = {}
    spans = []
    for event in study.events:
        if event.what == CLAIMED:
            begun[event.number] = (event.worker or "?", event.time)
        elif event.what != LATE and event.number in begun:
            worker, begin = begun.pop(event.number)
            spans.append((worker, event.number, begin, event.time, event.what))
    latest = max((event.time for event in study.events), default=0.0)
    return [*spans, *((worker, number, begin, latest, RUNNING) for number, (worker, begin) in begun.items())]
