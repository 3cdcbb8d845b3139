"""Mixture weights: the projection against its definition, slow updates, online mixing against its paper's formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.data.mixing import Bounds, OnlineMixing, SlowMixture, shares_of_scores
from wrinklefree.errors import InputError

WEIGHTS = st.lists(st.floats(-3.0, 3.0, allow_nan=False), min_size=2, max_size=20)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_projected_weights_sum_to_one_within_the_bounds(weights: list[float], low: float, high: float) -> None:
    count = len(weights)
    bounds = Bounds(low / count, 1.0 / count + high * (1.0 - 1.0 / count))
    found = bounds.project(weights)
    assert abs(found.sum() - 1.0) < 1e-9
    assert (found >= bounds.low).all() and (found <= bounds.high).all()
    # The order of the weights survives, and projecting again changes nothing.
    assert all(found[i] <= found[j] + 1e-12 for i in range(count) for j in range(count) if weights[i] <= weights[j])
    np.testing.assert_allclose(bounds.project(found), found, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1.0, 2.0), min_size=3, max_size=3))
def test_no_point_within_the_bounds_is_nearer(weights: list[float]) -> None:
    """The slow version: a grid over all admissible triples, 1/200 apart."""
    bounds, step = Bounds(0.05, 0.60), 1 / 200
    found = bounds.project(weights)
    grid = [(a, b, 1 - a - b) for a in np.arange(0, 1, step) for b in np.arange(0, 1, step)]
    allowed = np.array([p for p in grid if all(0.05 <= x <= 0.60 for x in p)])
    nearest = np.linalg.norm(allowed - np.array(weights), axis=1).min()
    assert np.linalg.norm(found - np.array(weights)) <= nearest + 1e-12


def test_clip_and_divide_would_leave_the_bounds_and_the_projection_does_not() -> None:
    wild = np.array([0.9, 0.1, 0.0, 0.0])
    clipped = np.clip(wild, 0.05, 0.60)
    assert (clipped / clipped.sum()).max() > 0.60
    found = Bounds().project(wild)
    assert found.max() == 0.60 and found.sum() == pytest.approx(1.0)
    assert found.tolist() == pytest.approx([0.6, 0.2, 0.1, 0.1])


def test_impossible_bounds_are_input_errors() -> None:
    with pytest.raises(InputError, match=r"3 shares between 0.05 and 0.3 cannot sum to 1"):
        Bounds(0.05, 0.3).project([1.0, 1.0, 1.0])
    with pytest.raises(InputError, match="21 shares"):
        Bounds().check(21)
    with pytest.raises(InputError, match="0 <= min <= max <= 1"):
        Bounds(0.5, 0.2)
    with pytest.raises(InputError, match="finite"):
        Bounds().project([1.0, float("nan")])


def test_scores_become_shares_and_none_positive_means_equal() -> None:
    assert shares_of_scores([3.0, -5.0, 1.0]).tolist() == [0.75, 0.0, 0.25]
    assert shares_of_scores([-1.0, -2.0]).tolist() == [0.5, 0.5]
    # The unit of a gradient does not matter.
    np.testing.assert_allclose(shares_of_scores([3e-12, 1e-12]), [0.75, 0.25])


def test_a_slow_mixture_goes_part_of_the_way_and_averages_scores() -> None:
    slow = SlowMixture(Bounds(0.0, 1.0), rate=0.25, smoothing=0.5)
    assert slow.update([0.5, 0.5], [1.0, 0.0]).tolist() == [0.625, 0.375]  # goal (1, 0)
    # Scores are now (0.5, 0.5): the goal is in the middle.
    assert slow.update([0.625, 0.375], [0.0, 1.0]).tolist() == pytest.approx([0.59375, 0.40625])
    again = SlowMixture(slow.bounds, 0.25, 0.5)
    again.load_state_dict(slow.state_dict())
    assert again.update([0.6, 0.4], [2.0, 1.0]).tolist() == slow.update([0.6, 0.4], [2.0, 1.0]).tolist()


def test_a_slow_mixture_reaches_its_goal_and_no_bound_is_crossed() -> None:
    slow, weights = SlowMixture(Bounds(), rate=0.15), np.array([0.25, 0.35, 0.10, 0.15, 0.15])
    for _ in range(100):
        weights = slow.update(weights, [0.0, 0.0, 5.0, -1.0, 0.1])
        assert weights.min() >= 0.05 and weights.max() <= 0.60
    assert weights.tolist() == pytest.approx(Bounds().project([0, 0, 5 / 5.1, 0, 0.1 / 5.1]).tolist(), abs=1e-6)


def test_online_mixing_with_one_source_in_a_step_is_the_papers() -> None:
    mixing, weights = OnlineMixing(Bounds(0.0, 1.0), 3), [1 / 3] * 3
    rewards = [0.0, 0.0, 0.0]
    for t, (drawn, loss) in enumerate([(0, 4.0), (2, 3.0), (0, 2.0), (1, 5.0)], start=1):
        rewards[drawn] = 0.9 * rewards[drawn] + 0.1 * loss / weights[drawn]
        now = min(1 / 3, math.sqrt(math.log(3) / (3 * t)))
        before = 1 / 3 if t == 1 else min(1 / 3, math.sqrt(math.log(3) / (3 * (t - 1))))
        powers = [math.exp(before * reward) for reward in rewards]
        expected = [(1 - 3 * now) * power / sum(powers) + now for power in powers]
        losses = [loss if i == drawn else float("nan") for i in range(3)]
        counts = [8 if i == drawn else 0 for i in range(3)]
        weights = list(mixing.update(weights, losses, counts))
        assert weights == pytest.approx(expected, abs=1e-12)


def test_online_mixing_prefers_the_high_loss_and_keeps_the_bounds() -> None:
    mixing, weights = OnlineMixing(Bounds(0.05, 0.60), 4), np.full(4, 0.25)
    for _ in range(300):
        weights = mixing.update(list(weights), [1.0, 2.0, 40.0, 3.0], 64 * weights)
        assert abs(weights.sum() - 1.0) < 1e-9 and weights.min() >= 0.05 and weights.max() <= 0.60
    assert weights.argmax() == 2 and weights[2] > 0.5
    again = OnlineMixing(mixing.bounds, 4)
    again.load_state_dict(mixing.state_dict())
    assert again.policy().tolist() == mixing.policy().tolist()
