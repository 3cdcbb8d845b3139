"""The choice of the window: the plan against all plans there are, and its course over the passes of an answer."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from wrinklefree.engine.windows import FixedWindow, MeasuredWindow, plan, promises_gain, shared_costs


def rate_of(windows: Any, acceptance: Any, costs: Any) -> float:
    """Tokens for the time of one row under a plan, from the shares of time spent in each state."""
    kept = np.concatenate([[1.0], np.cumprod(acceptance)])
    chances = np.zeros((len(kept), len(kept)))
    for drafts, masks in enumerate(windows):
        chances[drafts, masks] += kept[drafts]
        chances[drafts, 0] += 1 - kept[drafts]
    share = np.zeros(len(kept))
    share[0] = 1.0
    total = np.zeros(len(kept))
    for _ in range(2000):
        total += share
        share = share @ chances
    seconds = sum(total[k] * costs[k + windows[k]] for k in range(len(kept)))
    return float((total * np.cumsum(kept)).sum() / seconds)


@pytest.mark.parametrize("chance", [0.2, 0.6, 0.9])
@pytest.mark.parametrize("slope", [0.02, 0.2, 0.6])
def test_no_plan_is_faster(chance: float, slope: float) -> None:
    acceptance, costs = np.array([chance, chance * 0.8]), 1 + slope * np.arange(5) ** 1.1
    windows, rate = plan(acceptance, costs)
    rates = {each: rate_of(each, acceptance, costs) for each in itertools.product(range(3), repeat=3)}
    assert rate == pytest.approx(max(rates.values()), rel=1e-3)
    assert rates[tuple(windows.tolist())] == pytest.approx(rate, rel=1e-3)


def test_free_rows_are_all_used_and_dear_ones_never() -> None:
    acceptance = np.full(8, 0.7)
    windows, rate = plan(acceptance, np.ones(17))
    assert windows.tolist() == [8] * 9 and rate > 2
    windows, rate = plan(acceptance, np.arange(1.0, 18.0))
    assert windows.tolist() == [0] * 9 and rate == pytest.approx(1.0)
    assert promises_gain(np.ones(17)) and not promises_gain(np.arange(1.0, 18.0))


def answer(window: MeasuredWindow, chance: float, passes: int, seed: int = 0) -> list[int]:
    """The windows of an answer whose drafts are accepted with ``chance``."""
    rng, drafts, chosen = np.random.default_rng(seed), 0, []
    for _ in range(passes):
        masks = window.choose(drafts)
        chosen.append(masks)
        accepted = int(np.cumprod(rng.random(drafts) < chance).sum())
        window.record(drafts, accepted)
        drafts = masks if accepted == drafts else 0
    return chosen


def test_the_window_follows_the_acceptance() -> None:
    costs = 1 + 0.1 * np.arange(17)
    window = MeasuredWindow(costs)
    good = answer(window, 0.98, 200)
    assert max(good[-20:]) > max(good[:3])
    assert window.acceptance[0] > 0.9
    bad = answer(window, 0.0, 400)
    assert window.acceptance[0] < 0.25
    assert 2 <= sum(bad[-200:]) <= 12  # a try every 64 passes at last
    back = answer(window, 1.0, 300)
    assert max(back[-20:]) >= 3


def test_few_tries_where_nothing_can_be_gained() -> None:
    window = MeasuredWindow(np.arange(1.0, 18.0))
    assert sum(answer(window, 0.0, 1000)) <= 3 + 1000 / 64
    # nearly all drafts are accepted, and still two rows cost more than they bring
    window = MeasuredWindow(1 + 0.8 * np.arange(17))
    assert sum(answer(window, 0.9, 1000)) < 150
    assert sum(answer(window, 0.9, 1000)) <= 2 + 1000 / 64


def test_a_fixed_window_stays() -> None:
    window = FixedWindow(3)
    window.record(3, 0)
    assert [window.choose(drafts) for drafts in (0, 3)] == [3, 3]


def test_rows_in_company_cost_what_all_of_them_take() -> None:
    costs = 1 + 0.3 * np.arange(17.0)
    assert shared_costs(costs, 1) == pytest.approx(costs)
    for answers in (2, 8, 40):  # also far beyond what was measured, straight on
        wanted = (1 + 0.3 * (answers * np.arange(1, 18) - 1)) / (1 + 0.3 * (answers - 1))
        assert shared_costs(costs, answers) == pytest.approx(wanted)


def test_the_window_closes_in_company_and_opens_again() -> None:
    there = 1
    window = MeasuredWindow(1 + 0.1 * np.arange(17), company=lambda: there)
    alone = answer(window, 0.5, 100)
    there = 16
    crowd = answer(window, 0.5, 400)
    assert sum(alone[-20:]) >= 10 and sum(crowd[-200:]) <= 12
    there = 1
    assert sum(answer(window, 0.5, 100)[-20:]) >= 10
    free = np.ones(17)  # where rows cost nothing, company changes nothing
    assert MeasuredWindow(free, company=lambda: 16).choose(0) == MeasuredWindow(free).choose(0) > 0
