"""The table of a study's trials in a database: the one place where workers meet.

Nothing here waits for another worker and nothing is locked for longer than a statement: a trial changes hands by an
UPDATE that names the state it expects, which exactly one of several workers can fulfil. Who holds a trial is told
from its worker and its attempt together, so a worker that was given up and comes back changes nothing any more.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError

from wrinklefree.errors import InputError
from wrinklefree.sweep.database import EVENTS, FORMAT, STUDIES, TRIALS, now, open_database
from wrinklefree.sweep.trial import ENDED, FAILED, PLANNED, RUNNING, Trial

DATABASE_ERRORS: tuple[type[DBAPIError], ...] = (OperationalError, InterfaceError)
"""What a database raises that does not answer for now."""
CLAIMED, LOST, RELEASED, LATE = "claimed", "lost", "released", "late"
"""What an event can say besides a trial's states. LATE: figures came from a worker that no longer held the trial."""


@dataclass(frozen=True)
class Event:
    """Something that happened to a trial. ``time``: seconds since 1970 by the database's clock."""

    number: int
    time: float
    what: str
    worker: str | None


class Table:
    """The trials of one study. ``clock``: for tests, instead of the database's."""

    def __init__(self, storage: str, study: str, clock: Callable[[], float] | None = None) -> None:
        """Open or create the database.

        Raises: InputError for a storage that cannot be used; MissingDependencyError for its driver.
        """
        self.study = study
        self._clock = clock
        self._engine = open_database(storage)

    def close(self) -> None:
        self._engine.dispose()

    def join(self, fingerprint: str, space: str) -> None:
        """Enter the study, or create it. ``fingerprint``: hexadecimal hash of everything that decides its trials.

        Raises: InputError when the name stands for another space already.
        """
        row = {"study": self.study, "format": FORMAT, "fingerprint": fingerprint, "space": space}
        try:
            with self._engine.begin() as connection:
                if self._study(connection) is None:
                    connection.execute(STUDIES.insert().values(**row, created=self._now(connection)))
        except IntegrityError:
            pass  # another worker created it between our question and our answer
        with self._engine.begin() as connection:
            found = self._study(connection)
        if found is None or found.format != FORMAT:
            raise InputError(f"study {self.study!r}: the database holds it in another format; use a new database")
        if found.fingerprint != fingerprint:
            raise InputError(
                f"study {self.study!r}: the database holds another space under this name (fingerprint "
                f"{found.fingerprint[:12]}, this one has {fingerprint[:12]}); give the changed space another name"
            )

    def exists(self) -> bool:
        with self._engine.begin() as connection:
            return self._study(connection) is not None

    def trials(self) -> list[Trial]:
        """Return all trials, ascending by number."""
        question = sql.select(TRIALS).where(TRIALS.c.study == self.study).order_by(TRIALS.c.number)
        with self._engine.begin() as connection:
            return [_trial(row) for row in connection.execute(question)]

    def events(self) -> list[Event]:
        """Return what happened, oldest first."""
        question = sql.select(EVENTS).where(EVENTS.c.study == self.study).order_by(EVENTS.c.id)
        with self._engine.begin() as connection:
            return [Event(row.number, row.time, row.what, row.worker) for row in connection.execute(question)]

    def plan(
        self, proposals: Sequence[tuple[Mapping[str, Any], str]], most: int, holder: str | None = None
    ) -> list[int]:
        """Add (parameters, origin) pairs as planned trials, while the study has fewer than ``most``; return numbers.

        With a ``holder`` only if it still has the right to propose (`hold`), in the same transaction.
        """
        with self._engine.begin() as connection:
            if holder is not None and not self._extend(connection, holder, None):
                return []
            count = connection.execute(
                sql.select(sql.func.count()).select_from(TRIALS).where(TRIALS.c.study == self.study)
            ).scalar_one()
            numbers = []
            for number, (parameters, origin) in enumerate(proposals[: max(most - count, 0)], start=count):
                values = {"state": PLANNED, "origin": origin, "parameters": json.dumps(dict(parameters))}
                blank = {"attempts": 0, "lost": 0, "figures": "{}", "curve": "[]"}
                connection.execute(TRIALS.insert().values(study=self.study, number=number, **values, **blank))
                numbers.append(number)
        return numbers

    def claim(self, worker: str) -> Trial | None:
        """Take up the planned trial with the lowest number; None when none is planned."""
        lowest = sql.select(sql.func.min(TRIALS.c.number)).where(
            TRIALS.c.study == self.study, TRIALS.c.state == PLANNED
        )
        while True:
            with self._engine.begin() as connection:
                number = connection.execute(lowest).scalar_one()
                if number is None:
                    return None
                time = self._now(connection)
                taken = connection.execute(
                    self._change(number, TRIALS.c.state == PLANNED).values(
                        state=RUNNING,
                        worker=worker,
                        attempts=TRIALS.c.attempts + 1,
                        started=time,
                        beat=time,
                        ended=None,
                        error=None,
                        figures="{}",
                        curve="[]",
                    )
                )
                if taken.rowcount == 1:
                    self._note(connection, number, CLAIMED, worker, time)
                    row = connection.execute(sql.select(TRIALS).where(*self._of(number))).one()
                    return _trial(row)

    def beat(
        self, trial: Trial, curve: Iterable[tuple[float, float]] | None = None, directory: str | None = None
    ) -> bool:
        """Say that the trial's worker is alive, and what its objective was so far.

        False: the trial is no longer this worker's (it was given up for lost, or has ended). Whoever hears that stops
        at once.
        """
        with self._engine.begin() as connection:
            values: dict[str, Any] = {"beat": self._now(connection)}
            if curve is not None:
                values["curve"] = json.dumps([list(point) for point in curve])
            if directory is not None:
                values["directory"] = directory
            return connection.execute(self._held(trial).values(**values)).rowcount == 1

    def finish(
        self,
        trial: Trial,
        state: str,
        figures: Mapping[str, float] | None = None,
        curve: Iterable[tuple[float, float]] | None = None,
        error: str | None = None,
    ) -> bool:
        """Write a trial's end (COMPLETE, FAILED or STOPPED) once.

        False: it is no longer this worker's, and nothing was written (the event LATE remembers the attempt).
        """
        if state not in ENDED:
            raise ValueError(f"a trial cannot end as {state!r}")
        with self._engine.begin() as connection:
            time = self._now(connection)
            values: dict[str, Any] = {"state": state, "ended": time, "error": error}
            values["figures"] = json.dumps(dict(figures or {}), allow_nan=False)
            if curve is not None:
                values["curve"] = json.dumps([list(point) for point in curve])
            written = connection.execute(self._held(trial).values(**values)).rowcount == 1
            self._note(connection, trial.number, state if written else LATE, trial.worker, time)
            return written

    def release(self, trial: Trial) -> bool:
        """Give a running trial back, to be taken up again by anybody; False when it is no longer this worker's."""
        with self._engine.begin() as connection:
            given = connection.execute(self._held(trial).values(state=PLANNED, worker=None)).rowcount == 1
            if given:
                self._note(connection, trial.number, RELEASED, trial.worker, self._now(connection))
            return given

    def reclaim(self, silent_seconds: float, most_lost: int) -> list[int]:
        """Take running trials from workers not heard of for that long; return their numbers.

        Such a trial is planned again; one that was lost more than ``most_lost`` times is failed instead, because then
        the trial is what kills its workers.
        """
        reclaimed = []
        with self._engine.begin() as connection:
            time = self._now(connection)
            silent = (TRIALS.c.state == RUNNING, TRIALS.c.beat < time - silent_seconds)
            rows = connection.execute(sql.select(TRIALS).where(TRIALS.c.study == self.study, *silent)).all()
            for row in rows:
                lost = row.lost + 1
                values: dict[str, Any] = {"state": PLANNED, "worker": None, "lost": lost}
                if lost > most_lost:
                    why = f"{lost} workers that ran it were not heard of again (the last one: {row.worker})"
                    values = {"state": FAILED, "ended": time, "lost": lost, "error": why}
                same = (*silent, TRIALS.c.attempts == row.attempts)
                if connection.execute(self._change(row.number, *same).values(**values)).rowcount == 1:
                    self._note(connection, row.number, LOST, row.worker, time)
                    if lost > most_lost:
                        self._note(connection, row.number, FAILED, row.worker, time)
                    reclaimed.append(row.number)
        return reclaimed

    def retry_failed(self) -> list[int]:
        """Plan all failed trials again, as if they had never been lost; return their numbers."""
        with self._engine.begin() as connection:
            failed = (TRIALS.c.study == self.study, TRIALS.c.state == FAILED)
            numbers = list(connection.execute(sql.select(TRIALS.c.number).where(*failed)).scalars())
            connection.execute(TRIALS.update().where(*failed).values(state=PLANNED, worker=None, lost=0, ended=None))
        return numbers

    def hold(self, holder: str, seconds: float) -> bool:
        """Take or keep the right to propose trials for so long; False while another worker has it."""
        with self._engine.begin() as connection:
            return self._extend(connection, holder, seconds)

    def let_go(self, holder: str) -> None:
        """Give the right to propose back."""
        mine = STUDIES.update().where(STUDIES.c.study == self.study, STUDIES.c.holder == holder)
        with self._engine.begin() as connection:
            connection.execute(mine.values(holder=None, held_until=None))

    def _extend(self, connection: sql.Connection, holder: str, seconds: float | None) -> bool:
        """``seconds`` None: keep only what is held already (and lock the row until the transaction ends)."""
        time = self._now(connection)
        right = STUDIES.c.holder == holder
        if seconds is None:
            change = STUDIES.update().where(STUDIES.c.study == self.study, right).values(holder=holder)
        else:
            free = sql.or_(right, STUDIES.c.holder.is_(None), STUDIES.c.held_until < time)
            change = STUDIES.update().where(STUDIES.c.study == self.study, free)
            change = change.values(holder=holder, held_until=time + seconds)
        return connection.execute(change).rowcount == 1

    def _now(self, connection: sql.Connection) -> float:
        return now(connection) if self._clock is None else self._clock()

    def _study(self, connection: sql.Connection) -> Any:
        return connection.execute(sql.select(STUDIES).where(STUDIES.c.study == self.study)).one_or_none()

    def _of(self, number: int) -> tuple[sql.ColumnElement[bool], ...]:
        return TRIALS.c.study == self.study, TRIALS.c.number == number

    def _change(self, number: int, *conditions: sql.ColumnElement[bool]) -> sql.Update:
        return TRIALS.update().where(*self._of(number), *conditions)

    def _held(self, trial: Trial) -> sql.Update:
        mine = (TRIALS.c.worker == trial.worker, TRIALS.c.attempts == trial.attempts)
        return self._change(trial.number, TRIALS.c.state == RUNNING, *mine)

    def _note(self, connection: sql.Connection, number: int, what: str, worker: str | None, time: float) -> None:
        connection.execute(EVENTS.insert().values(study=self.study, number=number, time=time, what=what, worker=worker))


def _trial(row: Any) -> Trial:
    return Trial(
        number=row.number,
        parameters=json.loads(row.parameters),
        state=row.state,
        origin=row.origin,
        worker=row.worker,
        attempts=row.attempts,
        lost=row.lost,
        started=row.started,
        ended=row.ended,
        figures=json.loads(row.figures),
        curve=tuple((step, value) for step, value in json.loads(row.curve)),
        error=row.error,
        directory=row.directory,
    )
