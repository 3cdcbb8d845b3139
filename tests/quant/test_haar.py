"""The Haar transform against its definition in a plain loop, its properties, and the quantiser against absmean."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.quant import haar_triton, int8_triton
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.haar import haar_dequantize, haar_forward, haar_inverse, haar_quantize, haar_ternarize
from wrinklefree.quant.ternary import TernarySpec, dequantize, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]
SHAPES = {"rows": st.integers(1, 9), "columns": st.integers(1, 150), "seed": st.integers(0, 99)}


def matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@given(**SHAPES)
@example(rows=1, columns=1, seed=0)
@settings(deadline=None, max_examples=50)
def test_t3_inverse_undoes_forward_and_lengths_are_kept(rows: int, columns: int, seed: int) -> None:
    """Perfect reconstruction below 1e-6 (of values up to 5), Parseval, the same for the adjoint."""
    weight = matrix(rows, columns, seed)
    coefficients = haar_forward(weight)
    assert float((haar_inverse(coefficients) - weight).abs().max()) < 1e-6
    assert float((haar_forward(haar_inverse(weight)) - weight).abs().max()) < 1e-6
    assert float(coefficients.double().square().sum()) == pytest.approx(float(weight.double().square().sum()), rel=1e-6)


@pytest.mark.parametrize("columns", [1, 2, 7, 8])
def test_coefficients_are_the_equation(columns: int) -> None:
    weight = matrix(3, columns, 0)
    for row, found in zip(weight.tolist(), haar_forward(weight).tolist(), strict=True):
        low = [(row[2 * k] + row[2 * k + 1]) / math.sqrt(2) for k in range(columns // 2)]
        high = [(row[2 * k] - row[2 * k + 1]) / math.sqrt(2) for k in range(columns // 2)]
        assert found == pytest.approx([*low, *row[2 * (columns // 2) :], *high], abs=1e-6)


@given(**SHAPES, spec=st.sampled_from(SPECS))
@settings(deadline=None, max_examples=50)
def test_t3_codes_are_ternary_and_bands_have_their_own_scales(
    rows: int, columns: int, seed: int, spec: TernarySpec
) -> None:
    weight = matrix(rows, columns, seed)
    codes, scales = haar_ternarize(weight, spec)
    low = -(-columns // 2)
    assert codes.shape == weight.shape and codes.dtype == torch.int8 and set(codes.unique().tolist()) <= {-1, 0, 1}
    band = haar_forward(weight)[:, :low]
    assert torch.equal(codes[:, :low], ternarize(band, spec)[0]) and torch.equal(scales[0], ternarize(band, spec)[1])
    assert scales[1].shape == (spec.scale_shape(rows, columns // 2) if columns > 1 else (0,))
    assert torch.equal(haar_quantize(weight, spec), haar_dequantize(codes, scales, spec))


def energy_error(weight: torch.Tensor, spec: TernarySpec) -> tuple[float, float]:
    """Squared error with Haar bands, and of the weights rounded as they are."""
    plain = dequantize(*ternarize(weight, spec), spec)
    return float((haar_quantize(weight, spec) - weight).square().sum()), float((plain - weight).square().sum())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_smooth_rows_with_small_differences_lose_less_energy_than_with_absmean(spec: TernarySpec) -> None:
    """A slow wave with noise of a third of its height; about 0.91 of the error."""
    phase = torch.linspace(0, 6, 512) * 3 + 6 * torch.rand(64, 1, generator=torch.Generator().manual_seed(0))
    haar, plain = energy_error(torch.sin(phase) + 0.3 * matrix(64, 512, 1), spec)
    assert haar < 0.97 * plain


@pytest.mark.parametrize("spec", SPECS[:2], ids=str)
def test_without_differences_both_lose_the_same(spec: TernarySpec) -> None:
    """Pairs of equal columns: the low band is the weight itself times sqrt(2), so the codes are the same."""
    haar, plain = energy_error(matrix(32, 100, 0).repeat_interleave(2, 1), spec)
    assert haar == pytest.approx(plain, rel=1e-4)


def test_the_gradient_passes_straight_through() -> None:
    weight, gradient = matrix(4, 7, 0).requires_grad_(), matrix(4, 7, 1)
    haar_quantize(weight, SPECS[1]).backward(gradient)
    assert torch.equal(weight.grad, gradient)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_t11_a_layer_with_haar_weights(spec: TernarySpec) -> None:
    """At strength 0 nn.Linear exactly; at 1 the quantised weight, straight through; between, their blend."""
    torch.manual_seed(0)
    made = BitLinear(101, 12, True, TernarySpec(spec.granularity, spec.group_size, "haar"), QuantStrength(0.0))
    x = torch.randn(3, 101)
    assert torch.equal(made(x), torch.nn.functional.linear(x, made.weight, made.bias))
    made.strength.value = 1.0
    assert torch.equal(made.effective_weight(), haar_quantize(made.weight, spec))
    gradient = torch.randn(12, 101)
    made.effective_weight().backward(gradient)
    assert torch.equal(made.weight.grad, gradient)
    made.strength.value = 0.5
    expected = 0.5 * (made.weight + haar_quantize(made.weight, spec))
    assert torch.allclose(made.effective_weight(), expected, atol=1e-6)
    assert set(made.ternary()[0].unique().tolist()) == {-1, 0, 1}
    with pytest.raises(InputError, match="haar"):
        made.set_scale(torch.ones(1))


def test_kernels_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (haar_triton, int8_triton):
        monkeypatch.setattr(module, "triton", None)
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        haar_triton.haar_forward(matrix(2, 4, 0))
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        x = torch.ones(2, 8, dtype=torch.int8)
        int8_triton.scaled_product(x, torch.ones(2, 1), x, torch.ones(2), SPECS[1])


@pytest.mark.gpu
@pytest.mark.parametrize("columns", [1, 2, 511, 512, 513, 1000])
def test_triton_transforms_are_the_plain_ones(columns: int) -> None:
    weight = matrix(5, columns, 0)
    assert torch.allclose(haar_triton.haar_forward(weight.cuda()).cpu(), haar_forward(weight), atol=1e-6)
    assert torch.allclose(haar_triton.haar_inverse(weight.cuda()).cpu(), haar_inverse(weight), atol=1e-6)
