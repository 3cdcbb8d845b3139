"""A worker: takes a trial, runs it, writes what came out, and proposes the next one when none is waiting."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from wrinklefree.sweep.proposals import propose
from wrinklefree.sweep.space import KEEP_BEST, MINIMIZE, Space
from wrinklefree.sweep.stopping import reason_to_stop
from wrinklefree.sweep.table import DATABASE_ERRORS, Table
from wrinklefree.sweep.tidy import tidy
from wrinklefree.sweep.trial import COMPLETE, ENDED, FAILED, RUNNING, STOPPED, Trial
from wrinklefree.sweep.trial_run import (
    DirectoryInUseError,
    Interrupted,
    Lost,
    Outcome,
    Points,
    StopEarly,
    TooLong,
    TrialRun,
)

_WAIT_SECONDS = 1.0
_PROPOSE_SECONDS = 120.0  # a proposer that is not heard of for so long has lost its right
_BEATS = 6  # heartbeats within the time after which a worker is given up
_LONGEST_BEAT_SECONDS = 15.0
_DATABASE_TRIES = 8

T = TypeVar("T")


class StudyFailedError(RuntimeError):
    """The study cannot go on; the message says what to look at."""


@dataclass
class Worker:
    """One process's part in a study. ``most``: trials of the study. ``out``: where the trials' directories are.

    ``say`` gets lines for people. ``stop``: set it, and the worker gives its trial back and ends.
    """

    space: Space
    table: Table
    out: Path
    most: int
    say: Callable[[str], None]
    stop: threading.Event
    name: str = ""

    def __post_init__(self) -> None:
        self.name = (
            self.name or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(2)}"
        )  # containers share names

    def work(self) -> bool:
        """Take part until the study has all its trials ended (True), or until asked to stop (False).

        Raises: InputError when a trial's directory cannot be used; StudyFailedError when every first trial fails.
        """
        limits = self.space.limits
        while not self.stop.is_set():
            for number in self._ask(lambda: self.table.reclaim(limits.silent_seconds, limits.lost)):
                self.say(f"trial {number}: its worker was not heard of for {limits.silent_seconds:g} s")
            self._check_failures(self._ask(self.table.trials))
            trial = self._ask(lambda: self.table.claim(self.name))
            if trial is not None:
                self._run(trial)
                continue
            trials = self._ask(self.table.trials)
            if len(trials) >= self.most and all(each.state in ENDED for each in trials):
                return True
            if len(trials) >= self.most or not self._propose():
                self.stop.wait(_WAIT_SECONDS)
        return False

    def _run(self, trial: Trial) -> None:
        again = f", attempt {trial.attempts}" if trial.attempts > 1 else ""
        self.say(f"trial {trial.number} ({trial.origin}{again}): {_described(trial.parameters)}")
        try:
            outcome = self._outcome(trial)
        except Lost:
            self.say(f"trial {trial.number}: was given to another worker meanwhile; this attempt ends")
            return
        except StudyFailedError:
            raise  # the database: there is nothing that the trial could be given back to
        except BaseException as why:
            self._ask(lambda: self.table.release(trial))
            self.say(f"trial {trial.number}: given back, to be taken up again")
            if isinstance(why, Interrupted):
                return
            raise
        written = self._ask(
            lambda: self.table.finish(trial, outcome.state, outcome.figures, outcome.curve, outcome.error)
        )
        if not written:
            self.say(f"trial {trial.number}: was given to another worker meanwhile; this result is not taken")
            return
        if self.space.keep == KEEP_BEST:
            tidy(self.space, self._ask(self.table.trials), self.out)
        judged = {name: outcome.figures[name] for name in self.space.needed if name in outcome.figures}
        told = ", ".join([_described(judged)] * bool(judged) + [outcome.error or ""] * bool(outcome.error))
        self.say(f"trial {trial.number}: {outcome.state}: {told}")

    def _outcome(self, trial: Trial) -> Outcome:
        directory = self.out / "trials" / f"{trial.number:04d}"
        watch = self._watch(trial, directory)
        try:
            return TrialRun(self.space, trial, directory, watch).run()
        except DirectoryInUseError:
            # An attempt that was given up is still alive there; this one begins anew beside it.
            beside = directory.with_name(f"{directory.name}-attempt{trial.attempts}")
            self.say(f"trial {trial.number}: {directory} is still in use by an earlier attempt; running in {beside}")
            return TrialRun(self.space, trial, beside, self._watch(trial, beside)).run()

    def _watch(self, trial: Trial, directory: Path) -> Callable[[Points], None]:
        """Return what a running trial calls all the time: heartbeats, limits, early stopping."""
        limits, started, sent = self.space.limits, time.monotonic(), [-1e9, 0.0]
        every = min(limits.silent_seconds / _BEATS, _LONGEST_BEAT_SECONDS)

        def watch(curve: Points) -> None:
            if self.stop.is_set():
                raise Interrupted
            now = time.monotonic()
            if limits.trial_seconds is not None and now - started > limits.trial_seconds:
                raise TooLong(f"took longer than limits.trial_seconds ({limits.trial_seconds:g} s)")
            if now - sent[0] < every:
                return
            if not self._ask(lambda: self.table.beat(trial, curve, str(directory.absolute()))):
                raise Lost
            sent[0] = time.monotonic()
            if self.space.stopping is not None and curve and curve[-1][0] > sent[1]:
                sent[1] = curve[-1][0]
                if reason := self._reason_to_stop(trial, curve):
                    raise StopEarly(reason)

        return watch

    def _reason_to_stop(self, trial: Trial, curve: Points) -> str | None:
        assert self.space.stopping is not None
        trials = [each for each in self._ask(self.table.trials) if each.number != trial.number]
        complete = [each.curve for each in trials if each.state == COMPLETE]
        others = [each.curve for each in trials if each.state in (RUNNING, STOPPED)]
        (goal,) = self.space.objectives.values()
        return reason_to_stop(self.space.stopping, curve, complete, others, minimize=goal == MINIMIZE)

    def _propose(self) -> bool:
        """Plan the next trials, unless another worker is at it; return whether there are new ones."""
        if not self._ask(lambda: self.table.hold(self.name, _PROPOSE_SECONDS)):
            return False
        try:
            with self._holding():
                proposals = propose(self.space, self._ask(self.table.trials), self.most, self.say)
            return bool(self._ask(lambda: self.table.plan(proposals, self.most, self.name)))
        finally:
            self._ask(lambda: self.table.let_go(self.name))

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Keep the right to propose for as long as the block takes: a model of many trials takes minutes."""
        over = threading.Event()

        def keep() -> None:
            while not over.wait(_PROPOSE_SECONDS / _BEATS):
                self._ask(lambda: self.table.hold(self.name, _PROPOSE_SECONDS))

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _check_failures(self, trials: Sequence[Trial]) -> None:
        ended = [each for each in trials if each.state in ENDED]
        if len(ended) >= self.space.limits.failures and all(each.state == FAILED for each in ended):
            raise StudyFailedError(
                f"study {self.space.name!r}: its first {len(ended)} trials all failed, the last one in "
                f"{ended[-1].directory} with: {ended[-1].error}; set right what is wrong and add --retry-failed"
            )

    def _ask(self, question: Callable[[], T]) -> T:
        """Ask the database, again when it does not answer: a server that restarts must not end a night's work."""
        for attempt in range(_DATABASE_TRIES):
            try:
                return question()
            except DATABASE_ERRORS as error:
                if attempt == _DATABASE_TRIES - 1:
                    raise StudyFailedError(f"the database does not answer any more ({error.orig})") from error
                self.say(f"the database does not answer ({str(error.orig).strip()}); trying again")
                time.sleep(min(2.0**attempt, 30.0))
        raise AssertionError("unreachable")


@contextmanager
def end_with_parent(stop: threading.Event) -> Iterator[None]:
    """Set the event when the process that started this one is gone, however it went."""
    parent, over = os.getppid(), threading.Event()

    def watch() -> None:
        while not over.wait(_WAIT_SECONDS):
            if os.getppid() != parent:
                stop.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _described(values: Any) -> str:
    return ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
