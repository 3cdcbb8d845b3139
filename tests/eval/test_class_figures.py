"""Figures of classes: against scikit-learn, known values, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from wrinklefree.eval.class_figures import agreement, class_figures, interval, sign_test


def logits(guesses: list[int], size: int, height: float = 2.0) -> NDArray[np.float64]:
    return height * np.eye(size)[guesses]


def test_a_table_computed_by_hand() -> None:
    """Of class 1: 3 right, 1 missed, 2 wrongly guessed; of class 0: 4 right."""
    classes, guesses = [1] * 4 + [0] * 6, [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    found = class_figures(logits(guesses, 2), np.array(classes))
    assert found.confusion == ((4, 2), (1, 3)) and found.accuracy == 0.7 and found.majority == 0.6
    assert found.f1 == pytest.approx((8 / 11, 6 / 9)) and found.macro_f1 == pytest.approx((8 / 11 + 6 / 9) / 2)
    assert found.mcc == pytest.approx((3 * 4 - 2 * 1) / math.sqrt(5 * 4 * 6 * 5))
    right, wrong = -math.log(math.e**2 / (math.e**2 + 1)), -math.log(1 / (math.e**2 + 1))
    assert found.loss == pytest.approx((7 * right + 3 * wrong) / 10)


def test_known_intervals_and_probabilities() -> None:
    """Wilson's interval of 7 in 10 and of none in 10 (Brown, Cai, DasGupta 2001), and McNemar's exact test."""
    assert interval(7, 10) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    assert interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert sign_test(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert sign_test(5, 5) == 1.0 and sign_test(0, 0) == 1.0 and sign_test(9, 1) == sign_test(1, 9)
    assert 0.0 < sign_test(400, 600) < 1e-8


def test_two_models_beside_each_other() -> None:
    classes = np.array([0, 0, 1, 1, 2])
    ours, theirs = logits([0, 1, 1, 0, 2], 3), logits([0, 0, 1, 1, 1], 3)
    found = agreement(ours, theirs, classes)
    assert (found.same, found.both_right, found.only_model, found.only_teacher) == (0.4, 2, 1, 2)
    assert found.kl > 0.0 and agreement(theirs, theirs, classes).kl == pytest.approx(0.0, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_what_always_holds(pairs: list[tuple[int, int]]) -> None:
    classes, guesses = (list(each) for each in zip(*pairs, strict=True))
    found = class_figures(logits(guesses, 4), np.array(classes))
    assert 0.0 <= found.low <= found.accuracy + 1e-9 and found.accuracy - 1e-9 <= found.high <= 1.0
    assert -1.0 - 1e-9 <= found.mcc <= 1.0 + 1e-9 and found.majority <= 1.0
    assert sum(map(sum, found.confusion)) == found.examples == len(pairs)
    if guesses == classes:
        assert found.accuracy == 1.0 and found.mcc in (pytest.approx(1.0), 0.0)
    order = [2, 0, 3, 1]  # other names for the same classes change nothing
    again = class_figures(logits([order[g] for g in guesses], 4), np.array([order[c] for c in classes]))
    assert again.mcc == pytest.approx(found.mcc) and sorted(again.f1) == pytest.approx(sorted(found.f1))
    reference = [
        2 * sum(g == c == k for c, g in pairs) / max(sum(g == k for g in guesses) + sum(c == k for c in classes), 1)
        for k in range(4)
    ]
    assert found.f1 == pytest.approx(reference)


def test_scikit_learn_finds_the_same() -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="F1 and MCC were not compared with scikit-learn's")
    random = np.random.default_rng(0)
    classes, found = random.integers(0, 3, 200), random.normal(size=(200, 3))
    found[np.arange(200), classes] += 1.0
    ours, guesses = class_figures(found, classes), found.argmax(axis=1)
    assert ours.mcc == pytest.approx(metrics.matthews_corrcoef(classes, guesses))
    assert ours.macro_f1 == pytest.approx(metrics.f1_score(classes, guesses, average="macro"))
    assert ours.confusion == tuple(map(tuple, metrics.confusion_matrix(classes, guesses).tolist()))
