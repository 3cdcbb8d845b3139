"""One trial on this machine: its stages one after the other, in its own directory.

DIRECTORY/trial.json       parameters, and of each finished stage its words, figures and the hashes of what it left
DIRECTORY/STAGE/           what the stage wrote
DIRECTORY/STAGE.json       its result
DIRECTORY/STAGE.log .err   what it printed, and what it complained of
DIRECTORY/lock             held while a command of the trial is alive
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wrinklefree.artifact.files import json_bytes, read_json, sha256, write_bytes
from wrinklefree.artifact.provenance import provenance
from wrinklefree.errors import InputError
from wrinklefree.sweep.figures import METRICS, Metrics, MissingFigureError, read_figures, thinned
from wrinklefree.sweep.guard import DIRECTORY_IN_USE
from wrinklefree.sweep.process import Child, why
from wrinklefree.sweep.space import JSON, OUT, STUDY, TRIAL, Space, Stage, named, words_of
from wrinklefree.sweep.trial import COMPLETE, FAILED, STOPPED, Trial

_LOOK_SECONDS = 0.2
_HANDED_OVER = ("*.safetensors", "*.gguf", "config.json", "tokenizer.json")

Points = list[tuple[float, float]]


class DirectoryInUseError(RuntimeError):
    """Commands of an earlier attempt are still alive in the directory."""


class Halt(Exception):
    """Ends the running command. ``grace_seconds``: it may take so long to save what it has."""

    grace_seconds = 10.0


class StopEarly(Halt):
    """The trial promises too little; the message says why."""


class TooLong(Halt):
    """The trial's time is over."""


class Interrupted(Halt):
    """The worker is asked to stop; somebody will go on with the trial."""

    grace_seconds = 120.0


class Lost(Halt):
    """The trial belongs to another worker now."""

    grace_seconds = 0.0


@dataclass
class Outcome:
    """How a trial ended. ``figures``: "STAGE.figure" -> number."""

    state: str
    figures: dict[str, float] = field(default_factory=dict)
    curve: Points = field(default_factory=list)
    error: str | None = None


class TrialRun:
    """Runs a trial, or goes on with what an earlier attempt left in ``directory``.

    ``watch`` is called several times a second with the curve so far and ends the trial by raising a `Halt`.
    """

    def __init__(self, space: Space, trial: Trial, directory: Path, watch: Callable[[Points], None]) -> None:
        self.space, self.trial, self.directory, self._watch = space, trial, directory, watch
        self.figures: dict[str, float] = {}
        self.curve: Points = []
        self._record: dict[str, Any] = {}

    def run(self) -> Outcome:
        """Run what is left of the stages.

        Raises: Interrupted or Lost from ``watch``; DirectoryInUseError; InputError when the directory belongs to
        another study or cannot be written.
        """
        self._open()
        try:
            for stage in self.space.stages:
                self._run_stage(stage)
        except StopEarly as reason:
            return Outcome(STOPPED, self.figures, self.curve, str(reason))
        except (TooLong, MissingFigureError, _StageFailedError) as error:
            return Outcome(FAILED, self.figures, self.curve, str(error))
        return Outcome(COMPLETE, self.figures, self.curve)

    def _open(self) -> None:
        mine = {"study": self.space.name, "fingerprint": self.space.fingerprint, "number": self.trial.number}
        mine |= {"parameters": dict(self.trial.parameters)}
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / "trial.json"
        self._record = {**mine, "provenance": provenance(), "stages": {}}
        if path.is_file():
            kept = read_json(path)
            if {name: kept.get(name) for name in mine} != mine:
                raise InputError(f"{self.directory}: holds a trial of another study; choose another --out")
            self._record["stages"] = kept["stages"]
        self._save()

    def _run_stage(self, stage: Stage) -> None:
        out, result, done = self._out(stage.name), self.directory / f"{stage.name}.json", self._record["stages"]
        metrics = Metrics(out / METRICS)
        words = words_of(stage, self.space, self.trial.parameters, self._places(stage))
        self._check_handed_over(stage)
        if stage.name in done:
            self.figures |= done[stage.name]["figures"]
            self._look(stage, metrics)
            return
        if not stage.resumes:
            shutil.rmtree(out, ignore_errors=True)
        if not stage.ours:
            out.mkdir(exist_ok=True)
        result.unlink(missing_ok=True)
        started = time.time()
        try:
            self._wait(stage, words, metrics)
        except StopEarly:
            metrics.read()
            self.figures |= read_figures(stage, result, metrics, partial=True)
            raise
        self._look(stage, metrics)
        figures = read_figures(stage, result, metrics)
        self.figures |= figures
        done[stage.name] = {
            "command": ["wf", *words] if stage.ours else words,
            "seconds": time.time() - started,
            "figures": figures,
            "sha256": _hashes(out),
        }
        self._save()

    def _wait(self, stage: Stage, words: list[str], metrics: Metrics) -> None:
        log = self.directory / f"{stage.name}.log"
        child = Child(words, stage.ours, log, self.directory / "lock")
        try:
            while (code := child.wait(_LOOK_SECONDS)) is None:
                self._look(stage, metrics)
        except BaseException as error:
            child.end(error.grace_seconds if isinstance(error, Halt) else 0.0)
            raise
        finally:
            child.close()
        if code == DIRECTORY_IN_USE:
            raise DirectoryInUseError(str(self.directory))
        if code:
            raise _StageFailedError(f"{stage.name}: {why(code, child.last_words())}")

    def _look(self, stage: Stage, metrics: Metrics) -> None:
        curve = self.space.curve
        if metrics.read() and curve is not None and curve.stage == stage.name:
            self.curve = thinned(metrics.series(curve.metric))
        self._watch(self.curve)

    def _places(self, stage: Stage) -> dict[str, str]:
        places = {each.name: str(self._out(each.name)) for each in self.space.stages}
        result = str(self.directory / f"{stage.name}.json")
        return {
            **places,
            OUT: str(self._out(stage.name)),
            JSON: result,
            TRIAL: str(self.trial.number),
            STUDY: self.space.name,
        }

    def _check_handed_over(self, stage: Stage) -> None:
        """What an earlier stage left must be what this one takes."""
        used = {name for word in stage.words for name in named(word)}
        for name, record in self._record["stages"].items():
            if name in used and _hashes(self._out(name)) != record["sha256"]:
                raise _StageFailedError(f"{stage.name}: the files of {name} are not those that it finished with")

    def _out(self, stage: str) -> Path:
        return self.directory / stage

    def _save(self) -> None:
        write_bytes(self.directory / "trial.json", json_bytes(self._record))


class _StageFailedError(RuntimeError):
    pass


def _hashes(out: Path) -> Mapping[str, str]:
    """Return file name -> SHA-256 of the models in a directory; of a file that is itself one, of that file."""
    if out.is_file():
        return {out.name: sha256(out)}
    files = {path for pattern in _HANDED_OVER for path in out.glob(pattern) if path.is_file()}
    return {path.name: sha256(path) for path in sorted(files)}
