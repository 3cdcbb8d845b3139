"""The stopping rule against two references: a table with numpy's interpolation and quantile, and Ax's own strategy."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.errors import InputError
from wrinklefree.sweep.stopping import Curve, StoppingRule, read_rule, reason_to_stop

FLAT = [[(0, float(level)), (100, float(level))] for level in range(5)]


def test_the_worst_half_is_stopped_and_the_best_half_goes_on() -> None:
    rule = StoppingRule(min_step=20)
    for level, stopped in ((0.5, False), (1.9, False), (2.1, True), (9.0, True)):
        found = reason_to_stop(rule, [(0, 9.0), (40, level)], FLAT)
        assert (found is not None) == stopped, level
    assert "step 40" in str(reason_to_stop(rule, [(40, 9.0)], FLAT))


def test_nobody_is_stopped_without_grounds() -> None:
    bad: Curve = [(0, 9.0), (40, 9.0)]
    assert reason_to_stop(StoppingRule(min_step=20), bad, FLAT) is not None
    assert reason_to_stop(StoppingRule(min_step=20), [], FLAT) is None
    assert reason_to_stop(StoppingRule(min_step=41), bad, FLAT) is None
    assert reason_to_stop(StoppingRule(min_step=20, max_step=39), bad, FLAT) is None
    assert reason_to_stop(StoppingRule(min_step=20), bad, FLAT[:4], FLAT[4:]) is None  # four complete, five asked
    assert reason_to_stop(StoppingRule(min_step=20), bad, [each[:1] for each in FLAT]) is None  # none reaches step 40
    assert reason_to_stop(StoppingRule(min_step=20, keep_best=6), bad, FLAT) is None


def test_patience_forgives_one_bad_step() -> None:
    noisy: Curve = [(10, 0.5), (20, 0.5), (30, 0.5), (40, 9.0)]
    assert reason_to_stop(StoppingRule(min_step=20), noisy, FLAT) is not None
    assert reason_to_stop(StoppingRule(min_step=20, patience=20), noisy, FLAT) is None
    assert reason_to_stop(StoppingRule(min_step=20, patience=5), [(30, 9.0), *noisy[3:]], FLAT) is not None


def test_more_is_better_when_maximising() -> None:
    for level, stopped in ((3.0, False), (1.0, True)):
        assert (reason_to_stop(StoppingRule(), [(40, level)], FLAT, minimize=False) is not None) == stopped


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_diverged_is_stopped(value: float | None) -> None:
    found = reason_to_stop(StoppingRule(), [(0, 0.0), (40, value)], FLAT)  # type: ignore[list-item]
    assert "not finite" in str(found)
    assert reason_to_stop(StoppingRule(), [(40, 1.0)], [*FLAT, [(0, 1.0), (40, math.nan)]]) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"percentil": 50}, "percentile"),
        ({"percentile": 100}, "between 0 and 100"),
        ({"percentile": "50"}, "a number"),
        ({"min_curves": 2.5}, "whole number"),
        ({"min_step": 5, "patience": 6}, "min_step"),
        ({"min_step": 5, "max_step": 4}, "max_step"),
        ({"keep_best": True}, "number"),
        ({"min_curves": 0}, "at least 1"),
    ],
)
def test_mistakes_in_a_file_name_the_place(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=r"space\.yaml: early_stopping.*" + message):
        read_rule(values, "space.yaml: early_stopping")


def test_a_rule_is_read() -> None:
    assert read_rule({"percentile": 25, "max_step": None}, "x") == StoppingRule(percentile=25)


def plain(rule: StoppingRule, curves: list[Curve], n_complete: int, minimize: bool) -> bool:
    """The rule as one table: a row for each step, a column for each curve, not a number where it has no value."""
    if n_complete < rule.min_curves or curves[-1][-1][0] < rule.min_step:
        return False
    steps = sorted({step for curve in curves for step, _ in curve})
    table = np.array([np.interp(steps, *zip(*curve, strict=True), left=math.nan, right=math.nan) for curve in curves]).T
    last = curves[-1][-1][0]
    for step, row in zip(steps, table, strict=True):
        if last - rule.patience <= step <= last:
            there = row[~np.isnan(row)] * (1 if minimize else -1)
            mine = row[-1] * (1 if minimize else -1)
            limit = np.quantile(there, 1 - rule.percentile / 100)
            if len(there) < rule.min_curves or len(set(there[there < mine])) < rule.keep_best or not mine > limit:
                return False
    return True


@st.composite
def races(draw: st.DrawFn) -> tuple[StoppingRule, list[Curve], int, bool]:
    """A rule, curves of which the first are complete and the last is the one that runs."""
    at = st.lists(st.integers(0, 12), min_size=1, max_size=6, unique=True).map(sorted)
    curves = []
    for _ in range(draw(st.integers(2, 7))):
        steps = draw(at)
        curves.append([(step * 10.0, draw(st.integers(-4, 4)) / 4) for step in steps])
    if draw(st.booleans()):  # the one that runs is bad, so that whether it is stopped hangs on the rest
        curves[-1] = [(step, value + 1.0) for step, value in curves[-1]]
    min_step = draw(st.sampled_from([0.0, 10.0, 40.0]))
    rule = StoppingRule(
        percentile=draw(st.sampled_from([25.0, 50.0, 75.0])),
        min_step=min_step,
        patience=draw(st.sampled_from([0.0, min_step / 2, min_step])),
        min_curves=draw(st.integers(1, 3)),
        keep_best=draw(st.integers(0, 2)),
    )
    return rule, curves, draw(st.integers(len(curves) // 2, len(curves) - 1)), draw(st.booleans())


def decide(race: tuple[StoppingRule, list[Curve], int, bool]) -> bool:
    rule, curves, complete, minimize = race
    return reason_to_stop(rule, curves[-1], curves[:complete], curves[complete:-1], minimize) is not None


@given(races())
@settings(max_examples=200, deadline=None)
def test_equal_to_the_plain_table(race: tuple[StoppingRule, list[Curve], int, bool]) -> None:
    assert decide(race) == plain(*race)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::RuntimeWarning", "ignore::UserWarning")
def test_equal_to_the_strategy_of_ax() -> None:
    """A hundred races through Ax's experiment; values and steps as in the test above."""
    from hypothesis import HealthCheck

    stopped = []

    @given(races())
    @settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def compare(race: tuple[StoppingRule, list[Curve], int, bool]) -> None:
        theirs = _ask_ax(*race)
        stopped.append(theirs)
        assert decide(race) == theirs

    compare()
    assert any(stopped) and not all(stopped)


def _ask_ax(rule: StoppingRule, curves: list[Curve], n_complete: int, minimize: bool) -> bool:
    from ax.api.client import Client
    from ax.api.configs import RangeParameterConfig
    from ax.early_stopping.strategies import PercentileEarlyStoppingStrategy

    logging.getLogger("ax").setLevel(logging.ERROR)
    client = Client()
    client.configure_experiment([RangeParameterConfig(name="x", parameter_type="float", bounds=(0, 100))])
    client.configure_optimization("-loss" if minimize else "loss")
    for number, curve in enumerate(curves):
        trial = client.attach_trial({"x": float(number)})
        for step, value in curve:
            client.attach_data(trial, {"loss": value}, progression=step)
        if number < n_complete:
            client.complete_trial(trial, {"loss": curve[-1][1]}, progression=curve[-1][0])
    client.set_early_stopping_strategy(
        PercentileEarlyStoppingStrategy(
            percentile_threshold=rule.percentile,
            min_progression=rule.min_step,
            min_curves=rule.min_curves,
            patience=rule.patience,
            n_best_trials_to_complete=rule.keep_best or None,
        )
    )
    return client.should_stop_trial_early(len(curves) - 1)
