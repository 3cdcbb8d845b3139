"""A study as a whole: where it is kept, its workers on this machine, how it stands, what is best."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

from wrinklefree.artifact.provenance import provenance
from wrinklefree.errors import InputError
from wrinklefree.sweep.database import shown
from wrinklefree.sweep.findings import Findings
from wrinklefree.sweep.proposals import propose
from wrinklefree.sweep.space import JSON, OUT, STUDY, TRIAL, Space, Value, words_of
from wrinklefree.sweep.table import Table
from wrinklefree.sweep.trial import ENDED, STATES, Trial
from wrinklefree.sweep.worker import StudyFailedError, Worker

_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 150.0
_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Study:
    """``out``: directory of the trials on this machine. ``most``: trials of the study in all."""

    space: Space
    table: Table
    out: Path
    storage: str

    @property
    def most(self) -> int:
        return self.space.trials


def open_study(space: Space, storage: str | None, out: Path | None, create: bool = True) -> Study:
    """Enter a study, or begin it; without a storage its table is a SQLite file in ``out`` (default: sweeps/NAME).

    ``create`` false: only one that is there already.

    Raises: InputError when the storage cannot be used or holds another space under this name.
    """
    out = out or Path("sweeps") / space.name
    if not create and not storage and not (out / "study.sqlite").is_file():
        raise InputError(f"--out {out}: holds no study; name the directory or the storage that it was run with")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be made ({error.strerror})") from error
    storage = storage or str(out / "study.sqlite")
    table = Table(storage, space.name)
    if not create and not table.exists():
        raise InputError(f"study {space.name!r}: {shown(storage)} does not have it")
    table.join(space.fingerprint, json.dumps(asdict(space)))
    return Study(space, table, out, storage)


def commands(space: Space, out: Path) -> list[tuple[str, list[str]]]:
    """Return (stage, words) of what the first trial would run: nothing is written, nothing is started."""
    ((values, _), *_) = propose(space, [], 1, lambda _: None)
    return commands_of(space, values, out / "trials" / "0000")


def commands_of(
    space: Space, values: Mapping[str, Value], directory: Path, number: int = 0
) -> list[tuple[str, list[str]]]:
    """Return (stage, words) of a trial with these parameters whose stages write into ``directory``."""
    lines = []
    for stage in space.stages:
        places = {each.name: str(directory / each.name) for each in space.stages}
        places |= {OUT: str(directory / stage.name), JSON: str(directory / f"{stage.name}.json")}
        places |= {TRIAL: str(number), STUDY: space.name}
        words = words_of(stage, space, values, places)
        lines.append((stage.name, ["wf", *words] if stage.ours else words))
    return lines


def findings(study: Study) -> Findings:
    """Return the study as its report reads it; a trial is repeated in the directory ``again``."""

    def repeat(trial: Trial) -> list[str]:
        return [
            shlex.join(words) for _, words in commands_of(study.space, trial.parameters, Path("again"), trial.number)
        ]

    return Findings(study.space, tuple(study.table.trials()), tuple(study.table.events()), repeat)


def work(study: Study, say: Callable[[str], None], stop: threading.Event, name: str = "") -> bool:
    """Be one worker of the study in this process; see `Worker.work`."""
    return Worker(study.space, study.table, study.out, study.most, say, stop, name).work()


def work_together(
    study: Study,
    command: Sequence[str],
    environment: Mapping[str, str],
    count: int,
    show: Callable[[float, str], None],
    stop: threading.Event,
) -> bool:
    """Start ``count`` worker processes by a command and wait for them; return whether the study has ended.

    Each has a session of its own, so that Ctrl-C reaches it once, through us. One that dies is not replaced: the
    others take up its trial. ``show`` hears the share of trials that have ended.

    Raises: StudyFailedError when all workers ended and the study has not.
    """
    workers = [
        subprocess.Popen(
            list(command), env=share_of(each, count, environment), stdin=subprocess.DEVNULL, start_new_session=True
        )
        for each in range(count)
    ]
    try:
        while any(worker.poll() is None for worker in workers) and not stop.wait(_LOOK_SECONDS):
            trials = study.table.trials()
            done = sum(trial.state in ENDED for trial in trials)
            show(done / study.most, f"{done} of {study.most} trials have ended")
    finally:
        _end(workers)
    if ended(study.table.trials(), study.most):
        return True
    if not stop.is_set():
        codes = ", ".join(str(worker.returncode) for worker in workers)
        raise StudyFailedError(f"all workers ended before the study did (exit codes {codes}; see their last lines)")
    return False


def share_of(worker: int, count: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of one of ``count`` workers: its part of the machine's GPUs and threads.

    GPUs are those of CUDA_VISIBLE_DEVICES, or all that NVIDIA's driver lists; with more workers than GPUs some share
    one. Threads are divided unless OMP_NUM_THREADS says how many a process takes.
    """
    mine = dict(environment)
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    gpus = (
        [str(i) for i in range(len(list(_GPUS.glob("*"))))] if listed is None else [g for g in listed.split(",") if g]
    )
    if gpus:
        mine["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[worker::count] or [gpus[worker % len(gpus)]])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    mine.setdefault("OMP_NUM_THREADS", str(max(1, cores // count)))
    return mine


def _end(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.terminate()
    for worker in workers:
        try:
            worker.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def ended(trials: Sequence[Trial], most: int) -> bool:
    return len(trials) >= most and all(trial.state in ENDED for trial in trials)


def summary(study: Study) -> dict[str, Any]:
    """Return how the study stands, as `wf sweep --json` writes it."""
    trials, space = study.table.trials(), study.space
    counts = Counter(trial.state for trial in trials)
    return {
        "study": space.name,
        "fingerprint": space.fingerprint,
        "method": space.method,
        "seed": space.seed,
        "storage": shown(study.storage),
        "out": str(study.out),
        "objectives": dict(space.objectives),
        "constraints": [f"{each.figure} {each.sign} {each.bound!r}" for each in space.constraints],
        "ended": ended(trials, study.most),
        "asked_for": study.most,
        "states": {state: counts[state] for state in STATES},
        "lost": sum(trial.lost for trial in trials),
        "best": [_plain(trial) for trial in Findings(space, tuple(trials)).best()],
        "trials": [_plain(trial) for trial in trials],
        "provenance": provenance() | {"sqlalchemy": sqlalchemy.__version__},
    }


def _plain(trial: Trial) -> dict[str, Any]:
    values = asdict(trial)
    del values["curve"]
    return values
