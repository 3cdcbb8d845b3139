"""Schedules against values worked out by hand, their bounds for every input, and the plan of a run's length."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wrinklefree.errors import InputError
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.optim.schedules import (
    SCHEDULES,
    lr_factor,
    muon_learning_rate,
    plan_steps,
    set_factors,
    weight_decay_factor,
)


@pytest.mark.parametrize(
    ("kind", "tokens", "expected"),
    [
        ("constant", 100, 1.0),
        ("constant", 1000, 1.0),
        ("linear", 550, 0.55),
        ("linear", 1000, 0.1),
        ("cosine", 100, 1.0),
        ("cosine", 550, 0.55),
        ("cosine", 1000, 0.1),
        ("cosine", 325, 0.1 + 0.9 * (0.5 + 0.25 * 2**0.5)),
        ("wsd", 800, 1.0),
        ("wsd", 900, 0.55),
        ("wsd", 950, 0.325),
        ("wsd", 1000, 0.1),
        ("wsd_cosine", 800, 1.0),
        ("wsd_cosine", 900, 0.55),
        ("wsd_cosine", 850, 0.1 + 0.9 * (0.5 + 0.25 * 2**0.5)),
        ("bitnet", 100, 1.0),
        ("bitnet", 499, 1 - 0.9 * 399 / 900),
        ("bitnet", 500, 2 / 3 * 0.6),
        ("bitnet", 1000, 0.1),
    ],
)
def test_values_by_hand(kind: str, tokens: int, expected: float) -> None:
    # 1000 tokens, 100 of warm-up, the last 200 of decay, down to a tenth.
    assert lr_factor(kind, tokens, 1000, 100, 0.2, 0.1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", sorted(SCHEDULES))
def test_warm_up_is_the_same_line_for_all(kind: str) -> None:
    found = [lr_factor(kind, tokens, 1000, 100) for tokens in (0, 50, 99)]
    assert found == pytest.approx([0.01, 0.505, 0.9901])


@given(
    kind=st.sampled_from(sorted(SCHEDULES)),
    total=st.integers(1, 10**13),
    tokens=st.integers(0, 2 * 10**13),
    warmup=st.floats(0, 1),
    decay=st.floats(0, 1),
    floor=st.floats(0, 1),
)
@settings(max_examples=300, deadline=None)
def test_factors_stay_between_floor_and_peak(
    kind: str, total: int, tokens: int, warmup: float, decay: float, floor: float
) -> None:
    warmup_tokens = int(warmup * total)
    factor = lr_factor(kind, tokens, total, warmup_tokens, decay, floor)
    assert factor <= 1.0 + 1e-12
    assert factor >= (min(floor, 0.01) if tokens < warmup_tokens else floor) - 1e-12
    if tokens >= total and kind != "constant":
        assert factor == pytest.approx(floor, abs=1e-12)


@pytest.mark.parametrize("kind", sorted(set(SCHEDULES) - {"bitnet"}))
def test_no_jump_anywhere(kind: str) -> None:
    factors = [lr_factor(kind, tokens, 1000, 100, 0.2, 0.1) for tokens in range(1001)]
    # The steepest piece is the warm-up, 0.99 over 100 tokens.
    assert max(abs(b - a) for a, b in itertools.pairwise(factors)) <= 0.0099 + 1e-9


def test_bitnet_turns_weight_decay_off_at_the_midpoint() -> None:
    assert [weight_decay_factor("bitnet", tokens, 1000) for tokens in (0, 499, 500, 1000)] == [1.0, 1.0, 0.0, 0.0]
    assert all(weight_decay_factor(kind, 1000, 1000) == 1.0 for kind in set(SCHEDULES) - {"bitnet"})


def test_set_factors_starts_from_the_peaks_every_time() -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.01, weight_decay=0.1))
    for _ in range(3):
        set_factors(optimizer, 0.5, 0.0)
    found = {group["role"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert found == {"matrix": (0.005, 0.0), "norm": (0.005, 0.0)}
    set_factors(optimizer, 1.0)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cosin", 0, 10), "unknown schedule 'cosin'; did you mean 'cosine'"),
        (("wsd", -1, 10), "found -1 tokens"),
        (("wsd", 0, 0), "found 0 tokens of 0"),
        (("wsd", 0, 10, 11), "warm-up must fit"),
        (("wsd", 0, 10, 0, 1.5), "decay_ratio 1.5"),
        (("wsd", 0, 10, 0, 0.2, -0.1), "min_ratio -0.1"),
    ],
)
def test_wrong_schedules_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lr_factor(*arguments)
    with pytest.raises(InputError, match="unknown schedule"):
        weight_decay_factor("nope", 0, 1)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (135_000_000, 0.02),
        (134_515_008, 0.02),
        (350_000_000, 0.01),
        (361_821_120, 0.01),
        (596_049_920, 0.005),
        (600_000_000, 0.005),
        (4_000_000_000, 0.005),
    ],
)
def test_muon_rule_by_model_size(parameters: int, expected: float) -> None:
    assert muon_learning_rate(parameters) == expected


def test_plan_counts_every_process() -> None:
    plan = plan_steps(10_000_000_000, None, batch_size=32, sequence_length=512, accumulation=16, world_size=4)
    assert plan.max_steps == int(10_000_000_000 / (32 * 512 * 16 * 4))
    assert plan.total_tokens == plan.max_steps * plan.tokens_per_step <= 10_000_000_000
    assert plan_steps(None, 7, 2, 16).total_tokens == 7 * 32
    assert plan_steps(1000, 7, 2, 16).max_steps == 7
    assert plan_steps(100, 7, 2, 16).max_steps == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, None, 1, 1), "both null"),
        ((10, None, 2, 16), "less than one step of 32"),
        ((None, 0, 2, 16), "less than one step"),
        ((10, None, 0, 16), "batch_size: found 0"),
        ((10, None, 1, 16, 1, 0), "world_size: found 0"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_steps(*arguments)
