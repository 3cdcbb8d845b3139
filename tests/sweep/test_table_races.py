"""The table under everything that can happen to it: compared with a plain model in memory, and raced by processes.

The first test draws any sequence of claims, beats, ends, returns and passing time and compares every row; in the
second one processes that work on one file are killed with -9 wherever they are.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

pytest.importorskip("sqlalchemy", reason="not checked: races for trials (the extra [sweep] is missing)")

from wrinklefree.sweep.table import LATE, LOST, RELEASED, Table
from wrinklefree.sweep.trial import COMPLETE, ENDED, FAILED, PLANNED, RUNNING, STOPPED, Trial

SILENT, MOST_LOST, MOST = 60.0, 2, 3


@dataclass
class Row:
    """What the plain model knows of a trial; ``holder``: index of the claim that holds it."""

    state: str = PLANNED
    holder: int | None = None
    attempts: int = 0
    lost: int = 0
    beat: float = 0.0
    figures: dict[str, float] | None = None


class Races(RuleBasedStateMachine):
    """Claims are kept for ever: a worker that lost its trial tries to go on with it."""

    directory: Path

    @initialize()
    def open(self) -> None:
        self.time, self.rows, self.claims = 1000.0, list[Row](), list[Trial]()
        self.happened: Counter[str] = Counter()
        Races.number = getattr(Races, "number", 0) + 1
        self.table = Table(str(self.directory / f"{Races.number}.sqlite"), "toy", clock=lambda: self.time)
        self.table.join("aa", "space")

    @rule(count=st.integers(1, 3))
    def plan(self, count: int) -> None:
        new = min(count, MOST - len(self.rows))
        first = len(self.rows)
        assert self.table.plan([({}, "sobol")] * count, MOST) == list(range(first, first + new))
        self.rows += [Row() for _ in range(new)]

    @rule()
    def claim(self) -> None:
        trial = self.table.claim("one name for all: the attempt tells them apart")
        planned = [number for number, row in enumerate(self.rows) if row.state == PLANNED]
        assert (trial.number if trial else None) == (planned[0] if planned else None)
        if trial is not None:
            row = self.rows[trial.number]
            row.state, row.holder, row.beat, row.attempts = RUNNING, len(self.claims), self.time, row.attempts + 1
            self.claims.append(trial)
            self.happened["claimed"] += 1

    def _pick(self, share: float) -> tuple[Trial, Row, bool]:
        """Some claim ever made, its row, and whether it still holds the trial."""
        index = int(share * len(self.claims))
        row = self.rows[self.claims[index].number]
        return self.claims[index], row, row.state == RUNNING and row.holder == index

    @rule(share=st.floats(0, 0.999))
    def beat(self, share: float) -> None:
        if self.claims:
            trial, row, holds = self._pick(share)
            assert self.table.beat(trial, curve=[(1, 2.0)]) == holds
            row.beat = self.time if holds else row.beat

    @rule(share=st.floats(0, 0.999), state=st.sampled_from(ENDED), value=st.floats(0, 9))
    def finish(self, share: float, state: str, value: float) -> None:
        if self.claims:
            trial, row, holds = self._pick(share)
            assert self.table.finish(trial, state, {"loss": value}) == holds
            self.happened[state if holds else LATE] += 1
            if holds:
                row.state, row.figures = state, {"loss": value}

    @rule(share=st.floats(0, 0.999))
    def release(self, share: float) -> None:
        if self.claims:
            trial, row, holds = self._pick(share)
            assert self.table.release(trial) == holds
            if holds:
                row.state, row.holder = PLANNED, None
                self.happened[RELEASED] += 1

    @rule(seconds=st.sampled_from([0.0, 59.0, 61.0]))
    def reclaim(self, seconds: float) -> None:
        self.time += seconds
        silent = [n for n, row in enumerate(self.rows) if row.state == RUNNING and row.beat < self.time - SILENT]
        assert self.table.reclaim(SILENT, MOST_LOST) == silent
        for number in silent:
            row = self.rows[number]
            row.lost, row.holder = row.lost + 1, None
            row.state = FAILED if row.lost > MOST_LOST else PLANNED
            self.happened[LOST] += 1
            self.happened[FAILED] += row.state == FAILED

    @invariant()
    def rows_are_equal(self) -> None:
        if not hasattr(self, "table"):
            return
        trials = self.table.trials()
        found = [(trial.state, trial.attempts, trial.lost) for trial in trials]
        assert found == [(row.state, row.attempts, row.lost) for row in self.rows]
        for trial, row in zip(trials, self.rows, strict=True):
            if row.figures is not None:
                assert trial.figures == row.figures

    def teardown(self) -> None:
        if hasattr(self, "table"):
            assert Counter(event.what for event in self.table.events()) == +self.happened
            self.table.close()


def test_any_sequence_of_events_leaves_what_the_plain_model_says(tmp_path: Path) -> None:
    Races.directory = tmp_path
    case = Races.TestCase
    case.settings = settings(max_examples=12, stateful_step_count=40, deadline=None)
    case().runTest()


WORKER = """
import sys, time
from wrinklefree.sweep.table import Table
table = Table(sys.argv[1], "toy")
table.join("aa", "space")
if table.hold(sys.argv[2], 2):
    table.plan([({"x": i}, "sobol") for i in range(int(sys.argv[3]))], int(sys.argv[3]), sys.argv[2])
    table.let_go(sys.argv[2])
print("ready", flush=True)
while any(trial.state in ("planned", "running") for trial in table.trials()):
    table.reclaim(1.0, 1000)
    trial = table.claim(sys.argv[2])
    if trial is None:
        time.sleep(0.05)
        continue
    for _ in range(3):
        time.sleep(0.005)
        if not table.beat(trial, curve=[(1, 2.0)]):
            break
    else:
        if table.finish(trial, "complete", {"x": trial.parameters["x"]}):
            print(trial.number, flush=True)
"""


def race(storage: str, words: Path, trials: int, kills: int, seed: int) -> tuple[list[Trial], list[int], Table]:
    """Let three workers do the trials while ``kills`` of them are killed with -9 and replaced.

    ``words``: a directory for what the workers say. Returns the trials, the numbers that workers said they finished,
    and the table.
    """
    generator = random.Random(seed)

    def start(name: str) -> tuple[subprocess.Popen[bytes], Path]:
        command = [sys.executable, "-c", WORKER, storage, name, str(trials)]
        with (words / name).open("wb") as stream:
            return subprocess.Popen(command, stdout=stream), words / name

    workers = [start(f"w{i}") for i in range(3)]
    try:
        for kill in range(kills):
            place = generator.randrange(3)
            victim, said = workers[place]
            while not said.stat().st_size:  # not at work yet
                assert victim.poll() is None
                time.sleep(0.01)
            time.sleep(generator.random() * 0.1)
            victim.kill()
            victim.wait()
            workers[place] = start(f"w{3 + kill}")
        for worker, _ in workers:
            assert worker.wait(300) == 0
    finally:
        for worker, _ in workers:
            worker.kill()
            worker.wait()
    finished = [int(word) for said in words.iterdir() for word in said.read_text().split() if word.isdigit()]
    table = Table(storage, "toy")
    return table.trials(), finished, table


def check_race(trials: list[Trial], finished: list[int], table: Table, count: int, kills: int) -> None:
    """Every trial is complete with its own figures, finished once; all that was lost is remembered."""
    assert [(trial.number, trial.state) for trial in trials] == [(n, COMPLETE) for n in range(count)]
    assert all(trial.figures == {"x": float(trial.parameters["x"])} for trial in trials)
    events = Counter(event.what for event in table.events())
    assert events[COMPLETE] == count and events[FAILED] == events[STOPPED] == 0
    assert events["claimed"] == count + events[LOST]
    # A worker may die between the end of a trial and its word of it, and loses at most the one it was at.
    assert len(finished) == len(set(finished)) and count - kills <= len(finished)
    table.close()


def test_workers_killed_anywhere_leave_no_trial_behind(tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    check_race(*race(str(tmp_path / "study.sqlite"), tmp_path / "words", 25, 3, seed=0), 25, 3)
