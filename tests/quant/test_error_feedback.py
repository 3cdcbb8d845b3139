"""Error feedback against plain rounding and against the column-by-column algorithm of OBQ, written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wrinklefree.quant.error_feedback import fit_scale, fit_scales, inverse_factor, ternarize_with_feedback
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, dequantize, expand_scale, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64), TernarySpec("group", 128)]


def correlated(columns: int, samples: int = 400) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    common = torch.randn(samples, columns // 4, generator=generator) @ mixing
    return common + 0.5 * torch.randn(samples, columns, generator=generator)


def naive_feedback(weight: np.ndarray, gram: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """OBQ's update with the inverse recomputed for every column (arXiv 2208.11580, eq. 4): no Cholesky, no blocks."""
    rest = weight.astype(np.float64).copy()
    codes = np.zeros_like(rest)
    columns = weight.shape[1]
    for j in range(columns):
        inverse = np.linalg.inv(gram[j:, j:])
        codes[:, j] = np.clip(np.rint(rest[:, j] / scale[:, j]), -1, 1)
        error = (rest[:, j] - codes[:, j] * scale[:, j]) / inverse[0, 0]
        rest[:, j:] -= error[:, None] * inverse[0][None, :]
    return codes


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_output_error_is_far_below_plain_rounding(spec: TernarySpec) -> None:
    x = correlated(192)
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(1)) * 0.1
    result = ternarize_with_feedback(weight, inverse_factor(x.t() @ x, 0.05), spec)
    codes, scale = ternarize(result.latent, spec, result.scale)
    assert tuple(scale.shape) == spec.scale_shape(40, 192)

    def error(quantized: torch.Tensor) -> float:
        return float(((weight - quantized) @ x.t()).norm() / (weight @ x.t()).norm())

    fed_back = error(dequantize(codes, scale, spec))
    plain = error(dequantize(*ternarize(weight, spec), spec))
    fitted = error(dequantize(*ternarize(weight, spec, fit_scales(weight, spec)), spec))
    assert fed_back < 0.6 * min(plain, fitted)


def test_codes_are_those_of_the_algorithm_written_out() -> None:
    x = correlated(96)
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(2)) * 0.1
    gram = x.t() @ x
    spec = TernarySpec("row")
    result = ternarize_with_feedback(weight, inverse_factor(gram, 0.05), spec)
    damped = gram.double() + torch.eye(96) * (0.05 * gram.diagonal().mean() + 1e-8)
    scale = expand_scale(result.scale, spec, 96).expand(16, 96).numpy()
    expected = naive_feedback(weight.numpy(), damped.numpy(), scale)
    codes, _ = ternarize(result.latent, spec, result.scale)
    # A float32 walk may tip a value that lies on a threshold; one flip changes what follows in its row.
    assert float((codes.numpy() == expected).mean()) > 0.99


def test_the_factor_is_the_cholesky_factor_of_the_inverse() -> None:
    x = correlated(48)
    gram = x.t() @ x
    factor = inverse_factor(gram, 0.01).double()
    damped = gram.double() + torch.eye(48) * 0.01 * gram.diagonal().mean()
    assert torch.allclose(factor.t() @ factor @ damped, torch.eye(48).double(), atol=1e-3)


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    x = correlated(64)
    x[:, 10] = 0.0
    result = ternarize_with_feedback(torch.randn(4, 64), inverse_factor(x.t() @ x, 0.05), TernarySpec("group", 64))
    assert torch.isfinite(result.latent).all()
    assert torch.isfinite(result.scale).all()


def test_the_fitted_scale_is_a_local_optimum() -> None:
    weight = torch.randn(6, 200, generator=torch.Generator().manual_seed(3))
    importance = torch.rand(200, generator=torch.Generator().manual_seed(4)) + 0.1
    scale = fit_scale(weight, importance)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        codes = (weight / scale[:, None]).round().clamp(-1, 1)
        return ((weight - codes * scale[:, None]).square() * importance).sum(1)

    assert (loss(scale) <= loss(scale * 1.01) + 1e-6).all()
    assert (loss(scale) <= loss(scale * 0.99) + 1e-6).all()
    assert (loss(scale) <= loss(absmean_scale(weight, TernarySpec("row"))) + 1e-6).all()
