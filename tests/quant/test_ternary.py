"""The ternary rule against its equations, written out per element in NumPy; layouts against the NumPy specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.artifact.packing import pack_codes, pack_group_scales, unpack_codes, unpack_group_scales
from wrinklefree.errors import InputError
from wrinklefree.quant.activation import fake_quantize_activation, quantize_activation
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, dequantize, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64), TernarySpec("group", 128)]


def naive_ternarize(weight: np.ndarray, spec: TernarySpec) -> tuple[np.ndarray, np.ndarray]:
    """Absmean and round-then-clip by loops, scales as float64 before storing."""
    rows, columns = weight.shape
    codes = np.zeros((rows, columns), np.int8)
    width = {"tensor": columns, "row": columns, "group": spec.group_size}[spec.granularity]
    groups = -(-columns // width)
    scales = np.zeros((rows, groups), np.float32)
    for r in range(rows):
        for g in range(groups):
            part = weight[r, g * width : (g + 1) * width]
            scale = np.abs(weight).mean() if spec.granularity == "tensor" else np.abs(part).mean()
            scale = max(np.float32(scale), np.float32(1e-4))
            scales[r, g] = np.float32(np.float16(scale)) if spec.granularity == "group" else scale
            for c, value in enumerate(part):
                codes[r, g * width + c] = max(-1, min(1, int(np.rint(np.float32(value) / scales[r, g]))))
    return codes, scales


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_ternarize_equals_the_loops(spec: TernarySpec) -> None:
    weight = torch.randn(5, 150, generator=torch.Generator().manual_seed(0))
    codes, scale = ternarize(weight, spec)
    expected_codes, expected_scale = naive_ternarize(weight.numpy(), spec)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    found = scale.numpy().reshape(-1) if spec.granularity == "tensor" else scale.numpy().reshape(5, -1)
    wanted = expected_scale[0] if spec.granularity == "tensor" else expected_scale
    # Sums of 150 float32 terms in another order: 150 roundings of 2^-24, and one of float16 for groups.
    tolerance = 2**-10 if spec.granularity == "group" else 150 * 2**-24
    np.testing.assert_allclose(found, wanted, rtol=tolerance)


def test_zeros_of_a_gaussian_are_about_thirty_percent() -> None:
    """sign(W) instead of round-then-clip would leave none (the error of an earlier exporter)."""
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    codes, _ = ternarize(weight, TernarySpec("tensor"))
    # P(|w| < mean|w| / 2) = erf(0.5 * sqrt(2 / pi) / sqrt(2)) = 0.31 for a Gaussian.
    assert float((codes == 0).float().mean()) == pytest.approx(0.310, abs=0.01)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_ternarizing_again_under_the_same_scale_changes_nothing(spec: TernarySpec) -> None:
    weight = torch.randn(7, 200, generator=torch.Generator().manual_seed(1))
    codes, scale = ternarize(weight, spec)
    again, kept = ternarize(dequantize(codes, scale, spec), spec, scale)
    assert torch.equal(codes, again)
    assert torch.equal(scale, kept)


@given(st.integers(1, 9), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_codes_survive_packing(rows: int, columns: int, seed: int) -> None:
    ternary = np.random.default_rng(seed).integers(-1, 2, (rows, columns)).astype(np.int8)
    np.testing.assert_array_equal(unpack_codes(pack_codes(ternary), rows, columns), ternary)
    scales = np.random.default_rng(seed).random((rows, 3)).astype(np.float16)
    np.testing.assert_array_equal(unpack_group_scales(pack_group_scales(scales), rows), scales)


def test_group_scales_are_float16_values() -> None:
    weight = torch.randn(8, 256, generator=torch.Generator().manual_seed(2))
    scale = absmean_scale(weight, TernarySpec("group", 64))
    assert torch.equal(scale, scale.half().float())


@pytest.mark.parametrize("make", [lambda: TernarySpec("column"), lambda: TernarySpec("group", 48)])  # type: ignore[arg-type]
def test_wrong_specs_are_refused(make) -> None:
    with pytest.raises(InputError, match="allowed"):
        make()


def test_activation_codes_are_the_equation() -> None:
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(3)) * 5
    codes, scale = quantize_activation(x)
    for row, row_codes in zip(x.numpy(), codes.numpy(), strict=True):
        factor = np.float32(127) / max(np.abs(row).max(), np.float32(1e-5))
        np.testing.assert_array_equal(row_codes, np.rint(row * factor).astype(np.int8))
    assert int(codes.abs().max()) == 127
    assert torch.allclose(fake_quantize_activation(x, 1.0), codes / scale, rtol=1e-6)


def test_activation_gradient_passes_straight_through() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    fake_quantize_activation(x, 1.0).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
