"""Proposals by Ax itself, in one file because importing it takes seconds: compared with what the trials demand.

The model's own quality is measured in benchmarks/sweep; here is what Ax is told, and what is taken from it.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ax", reason="not checked: proposals by Ax (the extra [sweep] is missing)")

from wrinklefree.sweep.proposals import fed_client, propose, quiet
from wrinklefree.sweep.space import BAYESIAN, Space
from wrinklefree.sweep.space_file import space_from
from wrinklefree.sweep.trial import COMPLETE, FAILED, PLANNED, RUNNING, STOPPED, Trial

pytestmark = pytest.mark.slow


def _space(**changes: Any) -> Space:
    plain = {
        "name": "toy",
        "initial": 6,
        "trials": 20,
        "parameters": {
            "x": {"type": "float", "low": 1e-3, "high": 1, "log": True},
            "deep": {"type": "choice", "values": [True, False]},
            "depth": {"type": "int", "low": 1, "high": 4, "when": {"deep": True}},
            "kind": {"type": "choice", "values": ["a", "b", "c"], "when": {"deep": True}},
        },
        "stages": [
            {"name": "s", "run": ["p", "{x}", "{depth}", "{kind}"], "figures": {"loss": "loss", "bytes": "bytes"}}
        ],
        "objectives": {"s.loss": "minimize"},
    }
    return space_from({**plain, **changes}, "S")


def _figures(values: dict[str, Any]) -> dict[str, float]:
    """Deep is better, and 3 is the best depth; bytes grow with it."""
    depth = values.get("depth", 0)
    return {"s.loss": (depth - 3) ** 2 + 5 * values["x"], "s.bytes": 100.0 * depth}


def _tried(space: Space, count: int) -> list[Trial]:
    proposals = propose(space, [], space.initial, print)[:count]
    return [Trial(i, values, COMPLETE, figures=_figures(values)) for i, (values, _) in enumerate(proposals)]


def _ask(space: Space, trials: list[Trial]) -> dict[str, Any]:
    said: list[str] = []
    ((values, origin),) = propose(space, trials, 99, said.append)
    assert (origin, said) == (BAYESIAN, [])
    assert space.check(values, "here") == values  # complete, typed, and nothing that is inactive
    return values


def test_the_same_trials_give_the_same_proposal_and_one_that_runs_gives_another() -> None:
    space = _space()
    trials = _tried(space, 6)
    first = _ask(space, trials)
    assert _ask(space, trials) == first
    assert _ask(space, [*trials, Trial(6, first, RUNNING)]) != first


def test_trials_of_every_state_are_told_and_a_full_search_finds_the_depth() -> None:
    space = _space()
    trials = _tried(space, 6)
    trials += [Trial(6, {"x": 0.5, "deep": False}, FAILED, error="x")]
    trials += [Trial(7, {"x": 0.4, "deep": False}, STOPPED, figures={"s.loss": 11.0, "s.bytes": 0.0})]
    trials += [Trial(8, {"x": 0.3, "deep": False}, STOPPED), Trial(9, {"x": 0.2, "deep": False}, PLANNED)]
    with quiet():
        told = fed_client(space, trials).summarize()
    states = dict(zip(told["trial_index"], told["trial_status"], strict=True))
    assert [states[i] for i in (0, 6, 7, 8)] == ["COMPLETED", "FAILED", "EARLY_STOPPED", "ABANDONED"]
    assert told["m0"].notna().sum() == 7
    for number in range(10, 16):
        values = _ask(space, trials)
        trials.append(Trial(number, values, COMPLETE, figures=_figures(values)))
    best = min(trials[10:], key=lambda trial: trial.figures["s.loss"])
    assert best.parameters["depth"] == 3 and best.figures["s.loss"] < 0.5


def test_several_objectives_and_a_constraint_on_one_of_them() -> None:
    space = _space(objectives={"s.loss": "minimize", "s.bytes": "minimize"}, constraints=["s.bytes <= 250"])
    _ask(space, _tried(space, 6))


def test_a_space_that_is_exhausted_goes_on_quasi_randomly_and_says_so() -> None:
    parameters = {"k": {"type": "choice", "values": ["a", "b", "c"]}}
    stage = {"name": "s", "run": ["p", "{k}"], "figures": {"loss": "loss"}}
    space = _space(parameters=parameters, stages=[stage], initial=2)
    values = [{"k": "a"}, {"k": "b"}, {"k": "c"}]
    trials = [Trial(i, v, COMPLETE, figures={"s.loss": float(i)}) for i, v in enumerate(values)]
    said: list[str] = []
    ((found, origin),) = propose(space, trials, 9, said.append)
    assert found in values and (origin == BAYESIAN or "the model cannot propose" in said[0])
