"""Workers that run trials of small programs: what they hand over, what they write, and what becomes of the rest.

Compared with what the programs themselves leave on the disk. Every command is a real process; the one worker that is
killed with -9 is one too.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="not checked: workers of a sweep (the extra [sweep] is missing)")
pytest.importorskip("scipy", reason="not checked: workers of a sweep (the extra [sweep] is missing)")

from wrinklefree.errors import InputError
from wrinklefree.sweep.space_file import space_from
from wrinklefree.sweep.table import Table
from wrinklefree.sweep.trial import COMPLETE, FAILED, PLANNED, RUNNING, STOPPED, Trial
from wrinklefree.sweep.worker import StudyFailedError, Worker

# Two stages: the first writes a "model" that depends on the trial, the second says what it was given.
_FIRST = """
import json, os, pathlib, sys
out, result, x, then = sys.argv[1:5]
pathlib.Path(out, "model.safetensors").write_text("weights " + x)
print("working")
if then == "raise":
    raise RuntimeError("the trial's own trouble")
value = {"nan": float("nan"), "text": "low"}.get(then, float(x))
pathlib.Path(result).write_text(json.dumps({"figures": {} if then == "none" else {"loss": value}}))
"""
_SECOND = """
import hashlib, json, pathlib, sys
out, result, first = sys.argv[1:4]
data = pathlib.Path(first, "model.safetensors").read_bytes()
pathlib.Path(out, "taken").write_text(hashlib.sha256(data).hexdigest())
pathlib.Path(result).write_text(json.dumps({"loss": len(data)}))
"""
# Counts to `last`, one line of metrics each, and goes on from where it was when it is started again. The first time it
# takes pause * base seconds for a step, so that it is still at it when the test looks, on a busy machine too.
_COUNTS = """
import json, pathlib, signal, sys, time
out, last, pause, base = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
def save(*_):
    (out / "asked").write_text("to stop")
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
state = out / "state"
step = int(state.read_text()) if state.exists() else 0
with (out / "started").open("a") as stream:
    stream.write(str(step) + "\\n")
if step:
    pause = 0
while step < last:
    step += 1
    with (out / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps({"step": step, "loss": base + 1 / step}) + "\\n")
    (out / "half").write_text(str(step))
    (out / "half").replace(state)
    time.sleep(pause * base)
"""

Space = Callable[..., dict[str, Any]]


def _program(text: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text]


def _two_stages(**changes: Any) -> dict[str, Any]:
    first = [*_program(_FIRST), "{out}", "{json}", "{x}", "{then}"]
    return {
        "name": "toy",
        "method": "random",
        "trials": 2,
        "parameters": {
            "x": {"type": "float", "low": 0, "high": 1},
            "then": {"type": "choice", "values": ["end", "raise", "nan", "text", "none"]},
        },
        "given": [{"x": 0.25, "then": "end"}, {"x": 0.5, "then": "end"}],
        "stages": [
            {"name": "first", "run": first, "figures": {"loss": "figures.loss"}},
            {"name": "second", "run": [*_program(_SECOND), "{out}", "{json}", "{first}"], "figures": {"loss": "loss"}},
        ],
        "objectives": {"second.loss": "minimize"},
        **changes,
    }


def _counting(last: int, pause: float, given: list[float], **changes: Any) -> dict[str, Any]:
    words = [*_program(_COUNTS), "{out}", str(last), str(pause), "{base}"]
    stage = {"name": "count", "run": words, "resumes": True, "figures": {"loss": {"metric": "loss", "last": 2}}}
    return {
        "name": "toy",
        "method": "random",
        "trials": len(given),
        "parameters": {"base": {"type": "float", "low": 0, "high": 9}},
        "given": [{"base": base} for base in given],
        "stages": [stage],
        "objectives": {"count.loss": "minimize"},
        "curve": {"stage": "count", "metric": "loss"},
        "limits": {"silent_seconds": 1.0},
        **changes,
    }


class Party:
    """A study in a directory, and one worker of it."""

    def __init__(self, out: Path, plain: dict[str, Any]) -> None:
        self.out, self.said, self.stop = out, [], threading.Event()  # type: tuple[Path, list[str], threading.Event]
        self.space = space_from(plain, "S")
        self.table = Table(str(out / "study.sqlite"), "toy")
        self.table.join(self.space.fingerprint, "")

    def work(self) -> bool:
        return Worker(self.space, self.table, self.out, self.space.trials, self.said.append, self.stop, "w").work()

    def begin(self) -> threading.Thread:
        thread = threading.Thread(target=self.work)
        thread.start()
        return thread

    def trial(self, number: int = 0) -> Trial:
        return self.table.trials()[number]

    def path(self, *parts: str) -> Path:
        return self.out.joinpath("trials", "0000", *parts)


def _until(true: Callable[[], object]) -> None:
    limit = time.monotonic() + 60
    while not true():
        assert time.monotonic() < limit, "waited for a minute"
        time.sleep(0.02)


def test_t12_a_stage_gets_what_the_one_before_left_and_a_raising_trial_does_not_end_the_study(tmp_path: Path) -> None:
    given = [{"x": 0.25, "then": "end"}, {"x": 0.5, "then": "raise"}, {"x": 0.75, "then": "end"}]
    party = Party(tmp_path, _two_stages(given=given, trials=3))
    assert party.work()
    first, second, third = party.table.trials()
    assert [first.state, second.state, third.state] == [COMPLETE, FAILED, COMPLETE]
    assert first.figures == {"first.loss": 0.25, "second.loss": 12.0}
    assert all(type(value) is float for value in first.figures.values())
    assert second.error == "first: exit 1: RuntimeError: the trial's own trouble" and second.figures == {}
    model = party.path("first", "model.safetensors").read_bytes()
    assert model == b"weights 0.25"
    record = json.loads(party.path("trial.json").read_text())
    left = record["stages"]["first"]["sha256"]["model.safetensors"]
    assert left == hashlib.sha256(model).hexdigest() == party.path("second", "taken").read_text()
    assert record["parameters"] == {"x": 0.25, "then": "end"} and record["provenance"]["wrinklefree"]


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("nan", "a finite number is needed|is not strict JSON|NaN"),
        ("text", "is 'low'"),
        ("none", "has no figures.loss"),
    ],
)
def test_a_stage_without_its_figure_fails_its_trial(tmp_path: Path, then: str, message: str) -> None:
    party = Party(tmp_path, _two_stages(given=[{"x": 0.5, "then": then}], trials=1))
    assert party.work()
    assert party.trial().state == FAILED
    with pytest.raises(RuntimeError, match=message):
        raise RuntimeError(party.trial().error)


def test_a_study_whose_trials_all_fail_ends_and_can_be_retried(tmp_path: Path) -> None:
    plain = _two_stages(given=[{"x": 0.5, "then": "raise"}] * 3, trials=3, limits={"failures": 2})
    party = Party(tmp_path, plain)
    with pytest.raises(StudyFailedError, match=r"first 2 trials all failed.*the trial's own trouble"):
        party.work()
    assert [trial.state for trial in party.table.trials()] == [FAILED, FAILED, PLANNED]
    assert party.table.retry_failed() == [0, 1]
    assert [trial.state for trial in party.table.trials()] == [PLANNED] * 3


def test_files_that_changed_between_two_stages_are_noticed(tmp_path: Path) -> None:
    party = Party(tmp_path, _two_stages(trials=1))
    assert party.work()
    party.path("first", "model.safetensors").write_text("other weights")
    record = json.loads(party.path("trial.json").read_text())
    del record["stages"]["second"]  # as after a kill between the two
    party.path("trial.json").write_text(json.dumps(record))
    (tmp_path / "study.sqlite").unlink()
    again = Party(tmp_path, _two_stages(trials=1))
    assert again.work()
    assert again.trial().state == FAILED and "files of first are not those" in (again.trial().error or "")


def test_a_directory_of_another_study_is_refused_and_the_trial_given_back(tmp_path: Path) -> None:
    assert Party(tmp_path, _two_stages(trials=1)).work()
    (tmp_path / "study.sqlite").unlink()
    other = Party(tmp_path, _two_stages(trials=1, seed=5))
    with pytest.raises(InputError, match="holds a trial of another study"):
        other.work()
    assert other.trial().state == PLANNED


_WORKER = """
import json, sys, threading
from pathlib import Path
from wrinklefree.sweep.space_file import space_from
from wrinklefree.sweep.table import Table
from wrinklefree.sweep.worker import Worker
space = space_from(json.loads(sys.argv[2]), "S")
table = Table(sys.argv[1] + "/study.sqlite", "toy")
table.join(space.fingerprint, "")
Worker(space, table, Path(sys.argv[1]), space.trials, print, threading.Event(), "doomed").work()
"""


def test_a_worker_killed_mid_trial_takes_its_command_along_and_the_trial_goes_on(tmp_path: Path) -> None:
    plain = _counting(400, 0.05, [1.0])
    party = Party(tmp_path, plain)
    command = [sys.executable, "-c", _WORKER, str(tmp_path), json.dumps(plain)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as doomed:
        _until(lambda: party.path("count", "state").exists())
        doomed.send_signal(signal.SIGKILL)
    _until(lambda: party.path("count", "asked").exists())  # its command was told
    _until(lambda: _free(party.path("lock")))  # and is gone
    kept = int(party.path("count", "state").read_text())
    assert party.trial().state == RUNNING and 0 < kept < 400
    assert party.work()
    trial = party.trial()
    assert (trial.state, trial.attempts, trial.lost, trial.worker) == (COMPLETE, 2, 1, "w")
    assert party.path("count", "started").read_text().split() == ["0", str(kept)]
    assert [step for step, _ in trial.curve] == list(range(1, 401))
    assert trial.figures["count.loss"] == pytest.approx(1 + (1 / 399 + 1 / 400) / 2)


def _free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_worker_asked_to_stop_lets_its_command_save_and_gives_the_trial_back(tmp_path: Path) -> None:
    party = Party(tmp_path, _counting(10_000, 0.02, [1.0]))
    thread = party.begin()
    _until(lambda: party.table.trials() and party.trial().curve)
    party.stop.set()
    thread.join()
    assert party.path("count", "asked").read_text() == "to stop"
    trial = party.trial()
    assert (trial.state, trial.lost, trial.worker) == (PLANNED, 0, None)


def test_a_worker_that_lost_its_trial_stops_the_command_and_writes_nothing(tmp_path: Path) -> None:
    party = Party(tmp_path, _counting(400, 0.05, [1.0]))
    thread = party.begin()
    _until(lambda: party.table.trials() and party.trial().curve)
    assert party.table.reclaim(silent_seconds=-1, most_lost=2) == [0]  # as if it had been silent
    thread.join()
    trial = party.trial()
    assert (trial.state, trial.attempts, trial.lost) == (COMPLETE, 2, 1)  # it took it up again itself
    assert any("given to another worker" in line for line in party.said)
    assert len(party.path("count", "started").read_text().split()) == 2


def test_a_hopeless_trial_is_stopped_and_its_last_figures_stand(tmp_path: Path) -> None:
    stopping = {"min_step": 3, "min_curves": 2, "percentile": 50}
    plain = _counting(60, 0.01, [1.0, 1.1, 9.0], stopping=stopping, limits={"silent_seconds": 0.6})
    party = Party(tmp_path, plain)
    assert party.work()
    good, fair, bad = party.table.trials()
    assert (good.state, fair.state, bad.state) == (COMPLETE, COMPLETE, STOPPED)
    assert 3 <= bad.curve[-1][0] < 60 and bad.figures["count.loss"] > 9.0 and bad.error


def test_a_trial_over_its_time_is_ended(tmp_path: Path) -> None:
    limits = {"trial_seconds": 0.5, "silent_seconds": 1.0}
    party = Party(tmp_path, _counting(100_000, 0.02, [1.0], limits=limits))
    assert party.work()
    assert party.trial().state == FAILED and "limits.trial_seconds (0.5 s)" in (party.trial().error or "")
    assert _free(party.path("lock"))


def test_an_attempt_that_is_still_alive_keeps_its_directory(tmp_path: Path) -> None:
    party = Party(tmp_path, _two_stages(trials=1))
    party.path().mkdir(parents=True)
    handle = os.open(party.path("lock"), os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert party.work()
    finally:
        os.close(handle)
    assert party.trial().state == COMPLETE
    assert (party.trial().directory or "").endswith("0000-attempt1")
    assert not party.path("first", "model.safetensors").exists()


@pytest.mark.parametrize(("keep", "left"), [("best", [1]), ("all", [0, 1, 2])])
def test_weights_stay_of_the_trials_that_are_kept(tmp_path: Path, keep: str, left: list[int]) -> None:
    given = [{"x": x, "then": "end"} for x in (0.5, 0.25, 0.75)]
    party = Party(tmp_path, _two_stages(given=given, trials=3, keep=keep, objectives={"first.loss": "minimize"}))
    assert party.work()
    directories = [tmp_path / "trials" / f"{number:04d}" for number in range(3)]
    assert [i for i, path in enumerate(directories) if (path / "first" / "model.safetensors").exists()] == left
    assert all((path / "second" / "taken").exists() and (path / "first.json").exists() for path in directories)
