"""The table of trials, on real SQLite files: compared with what may happen to one trial, and who may say so.

Real processes race for trials; the clock is ours where time decides.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="not checked: the table of a sweep (the extra [sweep] is missing)")

from wrinklefree.errors import InputError
from wrinklefree.sweep.table import LATE, LOST, RELEASED, Table
from wrinklefree.sweep.trial import COMPLETE, FAILED, PLANNED, RUNNING


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(tmp_path: Path, clock: Clock) -> Table:
    table = Table(str(tmp_path / "study.sqlite"), "toy", clock=clock)
    table.join("aa", "space")
    return table


def _plan(table: Table, count: int, most: int = 100) -> list[int]:
    return table.plan([({"rate": 0.1 * i, "deep": None, "on": True}, "sobol") for i in range(count)], most)


def test_a_trial_goes_through_its_states(table: Table, clock: Clock) -> None:
    assert _plan(table, 2) == [0, 1]
    trial = table.claim("w1")
    assert trial is not None
    assert (trial.number, trial.state, trial.worker, trial.attempts, trial.started) == (0, RUNNING, "w1", 1, 1000.0)
    assert trial.parameters == {"rate": 0.0, "deep": None, "on": True}
    clock.time += 5
    assert table.beat(trial, curve=[(1, 2.5), (2, 2.25)], directory="/here")
    assert table.finish(trial, COMPLETE, {"stage2.loss": 2.25})
    ended, other = table.trials()
    assert (ended.state, ended.ended, ended.figures) == (COMPLETE, 1005.0, {"stage2.loss": 2.25})
    assert (ended.curve, ended.directory) == (((1, 2.5), (2, 2.25)), "/here")
    assert other.state == PLANNED
    assert [event.what for event in table.events()] == ["claimed", "complete"]


def test_no_more_trials_than_asked_for(table: Table) -> None:
    assert _plan(table, 3, most=4) == [0, 1, 2]
    assert _plan(table, 3, most=4) == [3]
    assert _plan(table, 3, most=4) == []


def test_a_silent_workers_trial_is_run_again_and_its_late_result_refused(table: Table, clock: Clock) -> None:
    _plan(table, 1)
    lost = table.claim("w1")
    assert lost is not None
    clock.time += 59
    assert table.reclaim(60, most_lost=2) == []
    assert table.beat(lost)
    clock.time += 61
    assert table.reclaim(60, most_lost=2) == [0]
    again = table.claim("w1")  # the same worker's name: the attempt tells the two apart
    assert again is not None and (again.attempts, again.lost) == (2, 1)
    assert not table.beat(lost)
    assert not table.release(lost)
    assert not table.finish(lost, COMPLETE, {"loss": 1.0})
    assert table.finish(again, COMPLETE, {"loss": 2.0})
    assert not table.finish(again, FAILED, error="twice")
    assert table.trials()[0].figures == {"loss": 2.0}
    assert [event.what for event in table.events() if event.what in (LOST, LATE)] == [LOST, LATE, LATE]


def test_a_trial_that_kills_its_workers_fails_in_the_end(table: Table, clock: Clock) -> None:
    _plan(table, 1)
    for _ in range(3):
        assert table.claim("w") is not None
        clock.time += 100
        assert table.reclaim(60, most_lost=2) == [0]
    assert table.claim("w") is None
    trial = table.trials()[0]
    assert (trial.state, trial.lost) == (FAILED, 3) and "not heard of" in (trial.error or "")


def test_a_trial_given_back_is_not_lost(table: Table) -> None:
    _plan(table, 1)
    first = table.claim("w1")
    assert first is not None and table.release(first)
    second = table.claim("w2")
    assert second is not None and (second.attempts, second.lost) == (2, 0)
    assert RELEASED in [event.what for event in table.events()]


def test_one_worker_at_a_time_proposes(table: Table, clock: Clock) -> None:
    assert table.hold("a", 30) and table.hold("a", 30)
    assert not table.hold("b", 30)
    clock.time += 31
    assert table.hold("b", 30)  # a was silent for too long
    assert table.plan([({}, "bayesian")], 9, holder="a") == []  # and its late proposal is not taken
    assert table.plan([({}, "bayesian")], 9, holder="b") == [0]
    table.let_go("a")
    assert not table.hold("a", 30)
    table.let_go("b")
    assert table.hold("a", 30)


def test_another_space_under_the_same_name_is_refused(table: Table, tmp_path: Path) -> None:
    table.join("aa", "space")
    with pytest.raises(InputError, match="holds another space"):
        table.join("bb", "other space")
    beside = Table(str(tmp_path / "study.sqlite"), "beside")
    beside.join("bb", "other space")
    _plan(table, 1)
    assert beside.trials() == []


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("sqlite://", "in memory"),
        ("nothing://x", "knows no database"),
        ("postgresql://u:secret@localhost:1/x", "answer"),
    ],
)
def test_a_storage_that_cannot_be_used_is_an_input_error(storage: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Table(storage, "toy")
    assert "secret" not in str(caught.value)


_RACER = """
import sys
from wrinklefree.sweep.table import Table
table = Table(sys.argv[1], "toy")
table.join("aa", "space")
table.plan([({}, "sobol")] * 40, 40, "racer") if table.hold("racer", 60) else None
while (trial := table.claim(sys.argv[2])) is not None:
    table.beat(trial)
    assert table.finish(trial, "complete", {"n": trial.number})
    print(trial.number)
"""


def test_processes_that_race_share_the_trials(tmp_path: Path) -> None:
    """Every process creates database, tables and study at once; each trial is run exactly once."""
    command = [sys.executable, "-c", _RACER, str(tmp_path / "study.sqlite")]
    racers = [subprocess.Popen([*command, f"w{i}"], stdout=subprocess.PIPE, text=True) for i in range(4)]
    numbers = []
    for racer in racers:
        output, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        numbers += [int(line) for line in output.split()]
    assert sorted(numbers) == list(range(40))
