"""A study's report: report.md with its pictures, and report.json with every trial and how it was obtained."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes, space_errors, write_bytes
from wrinklefree.artifact.markdown import table
from wrinklefree.artifact.provenance import provenance
from wrinklefree.sweep.findings import MIN_TRIALS_FOR_IMPORTANCE, Findings, Importance, importance
from wrinklefree.sweep.picture_parameters import MOST_SHOWN
from wrinklefree.sweep.pictures import draw_all
from wrinklefree.sweep.space import MINIMIZE
from wrinklefree.sweep.table import LOST
from wrinklefree.sweep.trial import FAILED, STATES, STOPPED, Trial

_BEST_SHOWN = 5
_TITLES = {
    "history.png": "The search",
    "slices.png": "Each parameter alone",
    "importance.png": "Which parameters matter",
    "parallel.png": "The parameters together",
    "front.png": "What no other trial beats",
    "curves.png": "Learning curves",
    "timeline.png": "Who ran what when",
}


def write_report(directory: Path, study: Findings) -> list[str]:
    """Write the report into a directory, made if missing, and return the names of the files written.

    Pictures of an earlier report that this one does not have are removed.

    Raises: InputError where the directory cannot be written; MissingDependencyError without matplotlib.
    """
    with space_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    importances = importance(study)
    pictures = draw_all(directory, study, importances)
    for old in _TITLES.keys() - set(pictures):
        (directory / old).unlink(missing_ok=True)
    document = summary(study, importances)
    write_bytes(directory / "report.json", json_bytes(document))
    write_bytes(directory / "report.md", markdown(study, document, importances, pictures).encode())
    return ["report.md", "report.json", *pictures]


def summary(study: Findings, importances: Sequence[Importance]) -> dict[str, Any]:
    """Return the report as plain values for a JSON file."""
    ranked, space = study.ranked(), study.space
    times = [time for trial in study.trials for time in (trial.started, trial.ended) if time is not None]
    states = Counter(trial.state for trial in study.trials)
    workers = {event.worker for event in study.events} | {trial.worker for trial in study.trials}
    return {
        "study": space.name,
        "fingerprint": space.fingerprint,
        "method": space.method,
        "seed": space.seed,
        "objectives": dict(space.objectives),
        "constraints": [f"{each.figure} {each.sign} {each.bound:g}" for each in space.constraints],
        "trials_by_state": {state: states[state] for state in STATES if states[state]},
        "trials_by_origin": dict(Counter(trial.origin for trial in study.trials)),
        "workers": sorted(worker for worker in workers if worker),
        "lost": sum(event.what == LOST for event in study.events),
        "seconds": max(times) - min(times) if times else 0.0,
        "trial_seconds": sum(_seconds(trial) for trial in study.trials),
        "best": _plain(ranked[0]) | {"repeat": list(study.repeat(ranked[0]))} if ranked else None,
        "best_so_far": [list(step) for step in study.best_so_far()],
        "front": [trial.number for trial in study.front()],
        "importance": [dataclasses.asdict(each) | {"shown": each.shown} for each in importances],
        "trials": [_plain(trial) for trial in study.trials],
        "events": [dataclasses.asdict(event) for event in study.events],
        "provenance": provenance(),
    }


def _plain(trial: Trial) -> dict[str, Any]:
    mappings = {"parameters": dict(trial.parameters), "figures": dict(trial.figures)}
    return dataclasses.asdict(trial) | mappings | {"curve": [list(point) for point in trial.curve]}


def _seconds(trial: Trial) -> float:
    return trial.ended - trial.started if trial.started is not None and trial.ended is not None else 0.0


def markdown(
    study: Findings, document: dict[str, Any], importances: Sequence[Importance], pictures: Sequence[str]
) -> str:
    """Return the report as Markdown; ``document``: of `summary`; ``pictures``: file names beside it."""
    lines = [f"# Study {study.space.name}", "", *_head(document), "", *_best(study)]
    for name in pictures:
        lines += [f"## {_TITLES[name]}", "", *_words(name, document, importances), f"![{_TITLES[name]}]({name})", ""]
    if not importances:
        needed = f"{MIN_TRIALS_FOR_IMPORTANCE} complete trials with different values"
        lines += [f"Importance was not computed: it needs {needed}.", ""]
    if len(study.space.parameters) > MOST_SHOWN:
        lines += [f"Pictures show the {MOST_SHOWN} most important of {len(study.space.parameters)} parameters.", ""]
    return "\n".join([*lines, *_ends(study), *_origin(document)])


def _head(document: dict[str, Any]) -> list[str]:
    sought = " and ".join(
        f"the {'least' if way == MINIMIZE else 'greatest'} `{name}`" for name, way in document["objectives"].items()
    )
    limits = "".join(f", with `{each}`" for each in document["constraints"])
    states = ", ".join(f"{n} {state}" for state, n in document["trials_by_state"].items())
    origins = ", ".join(f"{n} {origin}" for origin, n in document["trials_by_origin"].items())
    lost = document["lost"]
    return [
        f"Sought: {sought}{limits}. Method: {document['method']}, seed {document['seed']}.",
        "",
        f"{len(document['trials'])} trials: {states} (proposed: {origins}). Workers: {len(document['workers'])}. "
        f"{_duration(document['seconds'])} from the first start to the last end, "
        f"{_duration(document['trial_seconds'])} of trials in all."
        + (f" Taken back from a worker that was not heard of any more: {lost}." if lost else ""),
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _best(study: Findings) -> list[str]:
    ranked = study.ranked()[:_BEST_SHOWN]
    if not ranked:
        return ["No trial is complete" + (" and keeps the constraints." if study.space.constraints else "."), ""]
    names = [p.name for p in study.space.parameters if any(p.name in trial.parameters for trial in ranked)]
    rows = [
        [
            str(trial.number),
            *(_number(trial.figures.get(figure)) for figure in study.space.needed),
            *(_number(trial.parameters.get(name)) for name in names),
        ]
        for trial in ranked
    ]
    lines = ["## The best trials", "", table(["trial", *study.space.needed, *names], rows), ""]
    repeat = list(study.repeat(ranked[0]))
    return [*lines, f"Trial {ranked[0].number} again:", "", "```", *repeat, "```", ""] if repeat else lines


def _words(picture: str, document: dict[str, Any], importances: Sequence[Importance]) -> list[str]:
    if picture == "importance.png":
        quiet = ", ".join(each.name for each in importances if not each.shown)
        return [
            "The share of the variance of the objective's ranks that a parameter explains alone: a range by a parabola "
            "in its rank, a choice by its group means. A share below the mark, under which 95 % of shuffled values "
            "stay, shows nothing. What only two parameters together do is not seen, and where the search has settled "
            "on a value, that value's worth no longer shows." + (f" Nothing is shown for: {quiet}." if quiet else ""),
            "",
        ]
    if picture == "front.png":
        return [f"Trials {', '.join(map(str, document['front']))}.", ""]
    return []


def _ends(study: Findings) -> list[str]:
    """Tables of what did not go through at once: failed, stopped, taken up again."""
    lines: list[str] = []
    for state, title in ((FAILED, "Failed"), (STOPPED, "Stopped early")):
        mine = [trial for trial in study.trials if trial.state == state]
        rows = [
            [str(t.number), _line(t.error), f"{t.curve[-1][0]:g}" if t.curve else "-", _line(t.directory)] for t in mine
        ]
        if mine:
            lines += [f"## {title}", "", table(["trial", "why", "last step", "directory"], rows), ""]
    again = [trial for trial in study.trials if trial.attempts > 1]
    if again:
        rows = [[str(trial.number), str(trial.attempts), _story(study, trial), trial.state] for trial in again]
        lines += ["## Taken up more than once", "", table(["trial", "attempts", "what happened", "now"], rows), ""]
    return lines


def _story(study: Findings, trial: Trial) -> str:
    mine = [event for event in study.events if event.number == trial.number]
    return ", ".join(f"{event.what} ({event.worker})" if event.worker else event.what for event in mine) or "-"


def _line(text: str | None) -> str:
    """The last line that says anything: a stack trace ends with its reason."""
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "-"


def _origin(document: dict[str, Any]) -> list[str]:
    made = document["provenance"]
    commit = f", commit {made['commit']}{' with changes' if made['changed'] else ''}" if made["commit"] else ""
    machine = made["machine"]
    return [
        "## How it was obtained",
        "",
        f"wrinklefree {made['wrinklefree']}{commit}. This report was written at {made['time']} on {machine['cpu']}, "
        f"{machine['cores']} cores. `report.json` has every trial with its parameters, figures, curve and times. The "
        f"space's fingerprint is {document['fingerprint'][:12]}.",
        "",
    ]


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.5g}" if isinstance(value, float) else str(value)
