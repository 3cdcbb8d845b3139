"""The curriculum and the lambda warm-up against values worked out by hand from their definitions."""

from __future__ import annotations

import itertools

import pytest

from wrinklefree.errors import InputError
from wrinklefree.objectives.curriculum import Curriculum, Phase, StrengthWarmup

TWO = (Phase("first", 0.2, {"masked": 0.0}), Phase("second", 1.0, {"masked": 0.5}))
BASE = {"next_token": 1.0, "masked": 0.7}


def test_linear_reaches_exactly_0_1875_at_step_50_of_100() -> None:
    curriculum = Curriculum(BASE, TWO, "linear")
    weights = [curriculum.at(step / 100).weights["masked"] for step in range(101)]
    assert weights[50] == pytest.approx(0.1875, abs=1e-12)  # 0.5 (0.5 - 0.2) / 0.8
    assert weights[:21] == [0.0] * 21
    assert weights[100] == pytest.approx(0.5) and all(a <= b for a, b in itertools.pairwise(weights))


def test_step_and_cosine() -> None:
    step, cosine = Curriculum(BASE, TWO, "step"), Curriculum(BASE, TWO, "cosine")
    assert [step.at(p).weights["masked"] for p in (0.0, 0.2, 0.21, 1.0)] == [0.0, 0.0, 0.5, 0.5]
    assert cosine.at(0.6).weights["masked"] == pytest.approx(0.25)  # half-way: cosine is at one half
    assert cosine.at(0.4).weights["masked"] == pytest.approx(0.5 * (1 - 2**-0.5) / 2)
    assert step.at(0.21).phase == "second" and step.at(0.2).phase == "first"


def test_what_a_phase_does_not_name_keeps_its_base() -> None:
    setting = Curriculum(BASE, TWO, "linear").at(0.6)
    assert setting.weights["next_token"] == 1.0
    assert (setting.strength, setting.lr_scale, setting.data) == (1.0, 1.0, {})
    assert Curriculum(BASE).at(0.3).weights == BASE


def test_mixture_strength_and_learning_rate_move_too() -> None:
    phases = (
        Phase("a", 0.5, data={"books": 1.0}, strength=0.0, lr_scale=1.0),
        Phase("b", 1.0, data={"code": 1.0}, strength=1.0, lr_scale=0.5),
    )
    setting = Curriculum({}, phases, "linear").at(0.75)
    assert setting.data == {"books": 0.5, "code": 0.5}
    assert (setting.strength, setting.lr_scale) == (0.5, 0.75)


def test_ever_looks_ahead_only() -> None:
    phases = (Phase("a", 0.2, {"kd": 0.0}), Phase("b", 0.6, {"kd": 1.0}), Phase("c", 1.0, {"kd": 0.0}))
    for kind in ("step", "linear"):
        curriculum = Curriculum({"kd": 1.0}, phases, kind)  # type: ignore[arg-type]
        assert curriculum.ever(["kd"], 0.0) and curriculum.ever(["kd"], 0.6)
    assert not Curriculum({"kd": 1.0}, phases, "step").ever(["kd"], 0.61)
    assert Curriculum({"kd": 1.0}, phases, "linear").ever(["kd"], 0.61)  # still fading
    assert not Curriculum({"kd": 0.0}).ever(["kd"])


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ((Phase("a", 0.5),), "the last phase ends at 0.5, it must end at 1"),
        ((Phase("a", 0.5), Phase("b", 0.4)), "end 0.4 must lie above 0.5"),
        ((Phase("a", 1.0, {"maskd": 1.0}),), "did you mean 'masked'"),
        ((Phase("a", 1.0, {"masked": -1.0}),), "must not be negative"),
        ((Phase("a", 1.0, strength=1.5),), "strength must lie in 0 to 1"),
    ],
)
def test_wrong_phases_are_input_errors(phases: tuple[Phase, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Curriculum(BASE, phases)
    with pytest.raises(InputError, match="did you mean 'linear'"):
        Curriculum(BASE, TWO, "liner")  # type: ignore[arg-type]


def test_strength_warm_up() -> None:
    linear, cosine = StrengthWarmup("linear", 0.5), StrengthWarmup("cosine", 0.5)
    assert [linear.at(p) for p in (0.0, 0.25, 0.5, 0.9)] == [0.0, 0.5, 1.0, 1.0]
    assert cosine.at(0.25) == pytest.approx(0.5) and cosine.at(0.125) == pytest.approx((1 - 2**-0.5) / 2)
    assert StrengthWarmup().at(0.0) == 1.0 and StrengthWarmup("linear", 0.0).at(0.0) == 1.0
    assert StrengthWarmup("linear", 0.5, start=0.2, end=0.8).at(0.25) == pytest.approx(0.5)
    with pytest.raises(InputError, match=r"strength\.kind"):
        StrengthWarmup("linaer")  # type: ignore[arg-type]
