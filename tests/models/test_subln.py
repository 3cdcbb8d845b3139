"""SubLN: the norm against its equation, and the identity fit on tokens of like and of very unlike length."""

from __future__ import annotations

import pytest
import torch

from wrinklefree.models.subln import IDENTITY_TOLERANCE, SubLayerNorm, fit_identity


def fitted(x: torch.Tensor) -> SubLayerNorm:
    norm = SubLayerNorm(x.shape[-1], 1e-5, torch.float32)
    fit_identity([norm], lambda: norm(x))
    return norm


def change(norm: SubLayerNorm, x: torch.Tensor) -> float:
    return float(((norm(x) - x).norm() / x.norm()).detach())


def test_it_is_the_equation() -> None:
    x = torch.randn(3, 5, 16)
    norm = SubLayerNorm(16, 1e-2, torch.float32)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(16.0))
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-2).sqrt() * torch.arange(16.0)
    assert torch.allclose(norm(x), expected, atol=1e-6)


def test_tokens_of_like_length_keep_epsilon_and_their_values() -> None:
    direction = torch.nn.functional.normalize(torch.randn(200, 32), dim=-1)
    x = 3.0 * direction
    norm = fitted(x)
    assert float(norm.eps) == pytest.approx(1e-5)
    assert change(norm, x) < IDENTITY_TOLERANCE


def test_a_token_hundreds_of_times_longer_does_not_break_the_identity() -> None:
    """Attention sinks: one gain for all alone would shrink them to the length of the others."""
    torch.manual_seed(0)
    x = torch.randn(4, 50, 32)
    x[:, 0] *= 300.0
    norm = fitted(x)
    assert change(norm, x) < 1.1 * IDENTITY_TOLERANCE
    assert change(norm, x[:, 1:]) < 5 * IDENTITY_TOLERANCE


def test_a_norm_that_sees_only_zeros_is_left_alone() -> None:
    norm = fitted(torch.zeros(2, 3, 8))
    assert torch.isfinite(norm.weight).all()
    assert float(norm.eps) == pytest.approx(1e-5)
