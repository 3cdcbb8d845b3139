"""`wf sweep`: a search over commands of ours, by as many workers as there are."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrinklefree.cli.output import Output, progress
from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.sweep.space import Space
    from wrinklefree.sweep.study import Study

INTERRUPTED = 130
_STOPPING = "stopping: running trials save what they have and are given back (once more: at once)"


def run(
    space: Annotated[str, typer.Argument(metavar="SPACE.yaml", help="what to search, or the name of a shipped space")],
    trials: Annotated[int | None, typer.Option(min=1, help="trials of the study in all; default: the space's")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes on this machine")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar="WF_SWEEP_STORAGE", show_envvar=True,
            help="database of the study: a SQLite file or a URL; default: OUT/study.sqlite",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="directory of the trials; default: sweeps/NAME")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="of the proposals; default: the space's")] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="another value of a constant of the space")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check the space, show the first trial, stop")] = False,
    status: Annotated[bool, typer.Option("--status", help="show how the study stands, run nothing")] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write report.md, report.json and pictures there at the end")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="run failed trials once more")] = False,
    worker: Annotated[bool, typer.Option("--worker", hidden=True)] = False,
    json: Annotated[Path | None, typer.Option(help="write the study as JSON (- is standard output)")] = None,
) -> None:  # fmt: skip
    """The same command again goes on; on another machine, with the same --storage, it joins."""
    output = Output(json)
    from wrinklefree.sweep.space_file import find_space, read_space

    found = read_space(find_space(space), _changes(change))
    found = replace(found, trials=trials or found.trials, seed=found.seed if seed is None else seed)
    if dry_run:
        _show(found, out, output)
        return
    from wrinklefree.sweep.study import open_study, summary

    study = open_study(found, storage, out, create=not status)
    if worker:
        raise typer.Exit(0 if _be_worker(study) else INTERRUPTED)
    ended = True
    if not status:
        if retry_failed:
            output.line(f"failed trials that are planned again: {study.table.retry_failed() or 'none'}")
        ended = _work(study, [space, *(word for each in change or () for word in ("--set", each))], workers)
    result = summary(study)
    _report(result, output)
    if report is not None:
        _write_report(study, report, output)
    output.finish(result)
    if not ended:
        raise typer.Exit(INTERRUPTED)
    if not status and not result["best"]:
        raise typer.Exit(1)


def _changes(given: list[str] | None) -> dict[str, str]:
    changes = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise InputError(f"--set {each}: found no =; allowed is NAME=VALUE")
        changes[name] = value
    return changes


def _work(study: Study, space: list[str], workers: int) -> bool:
    """``space``: the words that name it on the command line."""
    from wrinklefree.sweep.process import wf_command
    from wrinklefree.sweep.study import work, work_together
    from wrinklefree.train.interrupt import stop_requested

    with stop_requested(_STOPPING, _say) as stop:
        if workers == 1:
            return work(study, _say, stop)
        words = [*space, "--worker", "--trials", str(study.most), "--seed", str(study.space.seed)]
        environment = {**os.environ, "WF_SWEEP_STORAGE": study.storage}  # it may hold a password: not for `ps`
        command = [*wf_command(), "sweep", *words, "--out", str(study.out)]
        with progress("sweep") as show:
            return work_together(study, command, environment, workers, show, stop)


def _be_worker(study: Study) -> bool:
    """One of several processes of a sweep; it ends with the one that started it."""
    from wrinklefree.sweep.study import work
    from wrinklefree.sweep.worker import end_with_parent
    from wrinklefree.train.interrupt import stop_requested

    with stop_requested(_STOPPING, _say) as stop, end_with_parent(stop):
        return work(study, _say, stop)


def _show(space: Space, out: Path | None, output: Output) -> None:
    from wrinklefree.sweep.study import commands

    names = ", ".join(each.name for each in space.parameters)
    output.line(f"{space.name}: {space.trials} trials, {space.method}, seed {space.seed}; parameters {names}")
    shown = commands(space, out or Path("sweeps") / space.name)
    for stage, words in shown:
        output.line(f"{stage}: {shlex.join(words)}")
    output.finish(
        {
            "study": space.name,
            "fingerprint": space.fingerprint,
            "trials": space.trials,
            "first_trial": [{"stage": stage, "command": words} for stage, words in shown],
        }
    )


def _write_report(study: Study, directory: Path, output: Output) -> None:
    from wrinklefree.sweep.report import write_report
    from wrinklefree.sweep.study import findings

    with progress("report"):
        files = write_report(directory, findings(study))
    output.line(f"report: {directory / files[0]} and {len(files) - 1} files beside it")


def _report(result: dict[str, Any], output: Output) -> None:
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items() if count)
    output.line(f"{result['study']}: {states or 'no trials yet'} of {result['asked_for']} ({result['out']})")
    for trial in result["best"]:
        figures = ", ".join(f"{name} {trial['figures'][name]:.6g}" for name in result["objectives"])
        values = ", ".join(f"{name}={value}" for name, value in trial["parameters"].items())
        output.line(f"best: trial {trial['number']}: {figures} with {values}")


def _say(message: str) -> None:
    print(f"sweep: {message}", file=sys.stderr, flush=True)
