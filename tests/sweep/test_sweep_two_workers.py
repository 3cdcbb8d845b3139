"""Two `wf sweep` on one database, as two machines would run them; one is killed with -9 in the middle of a trial.

Compared with what a user expects: the other one ends the study, every trial is complete with its own figure, and the
trial that was lost is told in the report. On a SQLite file and on a real PostgreSQL server.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_table_races import check_race, race

pytest.importorskip("sqlalchemy", reason="not checked: two workers of a study (the extra [sweep] is missing)")

from wrinklefree.sweep.table import LOST, Table
from wrinklefree.sweep.trial import COMPLETE, RUNNING

TRIALS = 6
# A stage that takes a moment, so that there is a middle to be killed in.
STAGE = "import sys, time, json; time.sleep(0.4); json.dump({'loss': float(sys.argv[2]) ** 2}, open(sys.argv[1], 'w'))"
SPACE = f"""
name: pair
method: random
trials: {TRIALS}
parameters:
  x: {{type: float, low: -1, high: 1}}
stages:
  - name: one
    run: [{sys.executable}, -S, -c, {json.dumps(STAGE)}, "{{json}}", "{{x}}"]
    figures: {{loss: loss}}
objectives: {{one.loss: minimize}}
limits: {{silent_seconds: 2, lost: 1000}}
"""
WF = [sys.executable, "-P", "-c", "from wrinklefree.cli.main import main; main()"]


def test_sqlite(tmp_path: Path) -> None:
    """And the report of what happened."""
    lost = _two_workers(str(tmp_path / "shared.sqlite"), tmp_path, "--report", "report")
    document = json.loads((tmp_path / "report" / "report.json").read_text())
    assert document["trials_by_state"] == {COMPLETE: TRIALS} and document["lost"] >= 1
    assert document["best"]["figures"]["one.loss"] == min(each["figures"]["one.loss"] for each in document["trials"])
    assert f"\n| {lost} | " in (tmp_path / "report" / "report.md").read_text()
    (tmp_path / "again").mkdir()
    subprocess.run(document["best"]["repeat"][0], shell=True, cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "again" / "one.json").read_text())["loss"] == document["best"]["figures"]["one.loss"]


def test_postgresql(postgresql: str, tmp_path: Path) -> None:
    _two_workers(postgresql, tmp_path)


@pytest.mark.slow
def test_postgresql_race(postgresql: str, tmp_path: Path) -> None:
    check_race(*race(postgresql, tmp_path, 40, 6, seed=1), 40, 6)


def _two_workers(storage: str, directory: Path, *words: str) -> int:
    """Return the number of the trial in which the first worker was killed."""
    (directory / "space.yaml").write_text(SPACE)
    environment = {**os.environ, "WF_SWEEP_STORAGE": storage}
    command = [*WF, "sweep", "space.yaml", "--out", "trials"]
    with (directory / "log").open("wb") as log:
        said = {"stdout": log, "stderr": log, "cwd": directory, "env": environment}
        doomed = subprocess.Popen(command, **said)  # type: ignore[call-overload]
        other = subprocess.Popen([*command, *words, "--json", "study.json"], **said)  # type: ignore[call-overload]
        try:
            lost = _kill_in_a_trial(storage, doomed)
            assert other.wait(300) == 0, (directory / "log").read_text()
        finally:
            for process in (doomed, other):
                process.kill()
                process.wait()
    table = Table(storage, "pair")
    trials, events = table.trials(), table.events()
    table.close()
    assert [(trial.number, trial.state) for trial in trials] == [(number, COMPLETE) for number in range(TRIALS)]
    assert all(trial.figures == {"one.loss": trial.parameters["x"] ** 2} for trial in trials)
    # A machine that stands still for seconds may lose others; they are run again like this one.
    assert lost in [event.number for event in events if event.what == LOST]
    assert trials[lost].attempts >= 2 and trials[lost].lost >= 1
    assert json.loads((directory / "study.json").read_text())["ended"] is True
    return lost


def _kill_in_a_trial(storage: str, doomed: subprocess.Popen[bytes]) -> int:
    """Kill the first process as soon as it is in a trial, and return that trial's number."""
    for _ in range(6000):
        time.sleep(0.02)
        assert doomed.poll() is None
        if storage.endswith(".sqlite") and not Path(storage).is_file():
            continue
        table = Table(storage, "pair")
        mine = [t for t in table.trials() if t.state == RUNNING and f":{doomed.pid}:" in str(t.worker)]
        table.close()
        if mine:
            doomed.send_signal(signal.SIGKILL)
            doomed.wait()
            return mine[0].number
    raise AssertionError("the first worker never had a trial")
