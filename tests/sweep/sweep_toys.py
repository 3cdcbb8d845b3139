"""A made-up study in memory: twelve trials of every kind, with values that tests know."""

from __future__ import annotations

from dataclasses import replace

from wrinklefree.sweep.findings import Findings
from wrinklefree.sweep.space import CHOICE, FLOAT, MINIMIZE, Condition, Constraint, Parameter, Space
from wrinklefree.sweep.table import Event
from wrinklefree.sweep.trial import COMPLETE, FAILED, STOPPED, Trial

PARAMETERS = (
    Parameter("rate", FLOAT, 1e-4, 1e-2, log=True),
    Parameter("deep", CHOICE, values=(True, False)),
    Parameter("kind", CHOICE, values=("linear", "cosine"), when=Condition("deep", (True,))),
    Parameter("idle", FLOAT, 0.0, 1.0),
)
SPACE = Space("toy", PARAMETERS, (), {"train.loss": MINIMIZE, "export.bytes": MINIMIZE})
BOUNDED = replace(SPACE, constraints=(Constraint("export.bytes", "<=", 900.0),))


def toy_trials() -> list[Trial]:
    """Loss 2 + number / 10, smaller models the later they come; number 3 failed, 5 was stopped, 7 was lost once."""
    trials = []
    for number in range(12):
        deep = number % 2 == 0
        values = {"rate": 1e-4 * 1.4**number, "deep": deep, **({"kind": "cosine"} if deep else {}), "idle": 0.5}
        loss = 2 + number / 10
        curve = tuple((float(step), loss + 1 / step) for step in range(1, 9))
        trial = Trial(
            number, values, COMPLETE, "sobol" if number < 5 else "bayesian", f"w{number % 2}", 1,
            started=1000.0 + 10 * number, ended=1009.0 + 10 * number, curve=curve,
            figures={"train.loss": loss, "export.bytes": 1000.0 - 10 * number},
        )  # fmt: skip
        if number == 3:
            trial = replace(trial, state=FAILED, figures={}, curve=(), error="Traceback\n  File x\nValueError: a|b")
        if number == 5:
            trial = replace(trial, state=STOPPED, figures={}, curve=curve[:4], error="above the limit")
        if number == 7:
            trial = replace(trial, attempts=2)
        trials.append(trial)
    return trials


def toy_events(trials: list[Trial]) -> list[Event]:
    events = []
    for trial in trials:
        start, end = trial.started or 0.0, trial.ended or 0.0
        if trial.number == 7:
            events += [Event(7, start - 1, "claimed", "w9"), Event(7, start, "lost", "w9")]
        events += [
            Event(trial.number, start, "claimed", trial.worker),
            Event(trial.number, end, trial.state, trial.worker),
        ]
    return events


def toy_study(space: Space = SPACE) -> Findings:
    trials = toy_trials()
    return Findings(space, tuple(trials), tuple(toy_events(trials)), lambda trial: [f"wf train # {trial.number}"])
