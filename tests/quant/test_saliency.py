"""Kept columns against the equation written out, their share against its values, averages against a plain loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant.activation import fake_quantize_activation
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.saliency import KeptShare, ScoreAverage, column_peaks, highest_columns, rest_scale
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, dequantize, expand_scale, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]


def layer(spec: TernarySpec, strength: float, learned: bool = False, share: float = 0.1) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(100, 12, True, spec, QuantStrength(strength))
    if learned:
        made.set_scale(absmean_scale(made.weight, spec) * 1.1)
    made.kept_columns = highest_columns(column_peaks(made.weight), share)
    return made


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_t11_strength_zero_is_linear_and_no_kept_column_is_bitlinear(spec: TernarySpec, learned: bool) -> None:
    x = torch.randn(3, 100)
    made = layer(spec, 0.0, learned)
    assert made.kept_columns is not None and int(made.kept_columns.sum()) == 10
    assert torch.equal(made(x), F.linear(x, made.weight, made.bias))
    none = layer(spec, 1.0, learned, share=0.0)
    plain = layer(spec, 1.0, learned)
    plain.kept_columns = None
    assert none.kept_columns is None and torch.equal(none(x), plain(x))
    nothing_kept = torch.zeros(100, dtype=torch.bool)
    assert torch.allclose(rest_scale(made.weight, nothing_kept, spec), absmean_scale(made.weight, spec), rtol=1e-3)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_the_forward_is_the_equation_in_training_and_evaluation(
    spec: TernarySpec, learned: bool, strength: float
) -> None:
    """w~ = w + lambda (where(kept, w, Q(w)) - w), Q with the mean of the columns that are not kept."""
    made = layer(spec, strength, learned)
    kept, x = made.kept_columns, torch.randn(5, 100)
    scale = made.weight_scale.detach() if learned else rest_scale(made.weight, kept, spec)
    mixed = torch.where(kept, made.weight, dequantize(*ternarize(made.weight, spec, scale), spec))
    expected = made.weight + strength * (mixed - made.weight)
    y = F.linear(fake_quantize_activation(x, strength), expected, made.bias)
    assert torch.allclose(made.train()(x), y, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(made.eval()(x), y, atol=1e-6)
    if strength == 1.0:
        assert torch.equal(made.effective_weight()[:, kept], made.weight[:, kept])


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_scale_is_the_mean_of_the_columns_that_are_not_kept(spec: TernarySpec) -> None:
    made = layer(spec, 1.0)
    rest = [j for j in range(100) if not made.kept_columns[j]]
    expanded = expand_scale(rest_scale(made.weight, made.kept_columns, spec), spec, 100).expand(12, 100)
    for i, j in ((0, 0), (11, 99), (5, 70)):
        rows = range(12) if spec.granularity == "tensor" else [i]
        columns = [c for c in rest if spec.granularity != "group" or c // 64 == j // 64]
        mean = sum(abs(float(made.weight.detach()[r, c])) for r in rows for c in columns) / (len(rows) * len(columns))
        assert float(expanded[i, j]) == pytest.approx(mean, rel=1e-3 if spec.granularity == "group" else 1e-6)


@pytest.mark.parametrize("learned", [False, True])
def test_kept_columns_have_the_gradient_of_a_linear_layer(learned: bool) -> None:
    spec = TernarySpec("group", 64)
    made = layer(spec, 1.0, learned)
    with torch.no_grad():
        made.weight[:, made.kept_columns] *= 100  # beyond the reach of a learned scale's gradient, if it were asked
    gradient = torch.randn(12, 100)
    made.effective_weight().backward(gradient)
    kept = made.kept_columns
    assert torch.equal(made.weight.grad[:, kept], gradient[:, kept])
    if learned:
        codes = made.ternary()[0].masked_fill(kept, 0)
        by_group = torch.stack([(gradient * codes)[:, :64].sum(1), (gradient * codes)[:, 64:].sum(1)], 1)
        assert torch.allclose(made.weight_scale.grad, by_group, atol=1e-4)
    else:
        assert torch.equal(made.weight.grad, gradient)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=40), st.floats(0, 1))
@settings(deadline=None)
def test_exactly_the_share_is_kept_and_nothing_outside_scores_higher(scores: list[float], share: float) -> None:
    mask = highest_columns(torch.tensor(scores), share)
    chosen = [] if mask is None else torch.tensor(scores)[mask].tolist()
    rest = scores if mask is None else torch.tensor(scores)[~mask].tolist()
    assert len(chosen) == round(share * len(scores))
    assert not chosen or not rest or min(chosen) >= max(rest)


def test_the_share_over_a_run() -> None:
    linear = KeptShare(0.4, 0.0, hold=0.2, end=0.6)
    assert [linear.at(p) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0.4, 0.4, 0.2, 0.0, 0.0])
    cosine = KeptShare(0.4, 0.1, end=0.8, kind="cosine")
    assert [cosine.at(p) for p in (0.0, 0.2, 0.4, 0.9)] == pytest.approx([0.4, 0.4 - 0.3 * 0.146446609, 0.25, 0.1])
    assert KeptShare(0.3, 0.0, hold=0.5, end=0.5).at(0.5) == 0.0
    for wrong in ({"initial": 1.5}, {"hold": 0.9, "end": 0.5}, {"kind": "step"}):
        with pytest.raises(InputError):
            KeptShare(**wrong)  # type: ignore[arg-type]


def test_the_average_is_right_from_the_first_score_on() -> None:
    average, values = ScoreAverage(0.9), torch.rand(7, 5)
    for n, scores in enumerate(values, start=1):
        average.update(scores)
        weights = torch.tensor([0.9 ** (n - 1 - i) for i in range(n)])
        assert torch.allclose(average.value(), (weights[:, None] * values[:n]).sum(0) / weights.sum(), atol=1e-6)
    assert torch.equal(_average_of(values[0]), values[0])


def _average_of(scores: torch.Tensor) -> torch.Tensor:
    average = ScoreAverage(0.5)
    average.update(scores)
    return average.value()
