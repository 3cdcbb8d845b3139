"""Low-rank correction of one layer: strength, gradients, and the closed form against brute force."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.quant.activation import fake_quantize_activation
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, held_codes
from wrinklefree.quant.error_feedback import inverse_factor, ternarize_with_feedback
from wrinklefree.quant.low_rank import LowRankBitLinear, add_factors, low_rank_linears
from wrinklefree.quant.low_rank_fit import (
    Moments,
    factor_bits,
    fit_low_rank,
    optimal_factors,
    squared_error,
    ternary_product,
)
from wrinklefree.quant.ternary import TernarySpec

GROUPS = TernarySpec("group", 64)


def plain(bias: bool = True, strength: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, BitLinear]:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias, dtype=dtype)
    return linear, BitLinear.from_linear(linear, GROUPS, QuantStrength(strength))


def filled(layer: LowRankBitLinear) -> LowRankBitLinear:
    nn.init.normal_(layer.low_rank_u, std=0.3)
    return layer


def problem(vectors: int = 400, seed: int = 0, rows: int = 24) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight [rows, 40] and correlated inputs x, y = Q(x) of some vectors, float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    x = draw(vectors, 40) @ draw(40, 40) / 6
    return draw(rows, 40), x, fake_quantize_activation(x, 1.0)


def error(weight: Any, product: Any, target: Any, x: Any, y: Any) -> float:
    """||W X - What Y - U V^T X||^2, from the vectors themselves."""
    return float((x @ (weight - target).t() - y @ product.t()).square().sum())


@pytest.mark.parametrize("bias", [True, False])
def test_at_strength_zero_it_is_the_linear_layer_to_the_bit(bias: bool) -> None:
    linear, ternary = plain(bias, strength=0.0)
    x = torch.randn(3, 5, 64)
    assert torch.equal(filled(LowRankBitLinear.of(ternary, 4))(x), linear(x))


def test_the_correction_sees_the_input_before_its_rounding_and_scales_with_the_strength() -> None:
    _, ternary = plain()
    x = torch.randn(7, 64)
    without = {}
    for strength in (0.4, 1.0):
        ternary.strength.value = strength
        without[strength] = ternary(x)
    layer = filled(LowRankBitLinear.of(ternary, 4))
    correction = x @ layer.low_rank_v.t() @ layer.low_rank_u.t()
    for strength, product in without.items():
        layer.strength.value = strength
        torch.testing.assert_close(layer(x), product + strength * correction)
        rounded = fake_quantize_activation(x, 1.0) @ layer.low_rank_v.t() @ layer.low_rank_u.t()
        assert not torch.allclose(layer(x), product + strength * rounded, atol=1e-4)


def test_new_factors_change_nothing_and_can_learn_from_the_first_step_on() -> None:
    """Zero factors on both sides would have zero gradients for ever."""
    _, ternary = plain()
    x = torch.randn(9, 64)
    before = ternary(x)
    layer = LowRankBitLinear.of(ternary, 4)
    assert torch.equal(layer(x), before)
    optimizer = torch.optim.SGD([layer.low_rank_u, layer.low_rank_v], lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        assert layer.low_rank_u.grad is not None and layer.low_rank_u.grad.abs().max() > 0
        optimizer.step()
        if step:
            assert layer.low_rank_v.grad is not None and layer.low_rank_v.grad.abs().max() > 0


def test_gradients_reach_the_input_through_frozen_codes() -> None:
    """The rounding of the inputs is passed straight through, else factors of earlier layers would learn nothing."""
    _, ternary = plain()
    layer = LowRankBitLinear.of(ternary, 4)  # U is zero: the gradient can only come through the codes
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    x = torch.randn(5, 64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.abs().max() > 0


def test_factors_have_the_dtype_of_the_latents_and_hooks_scale_and_copies_survive() -> None:
    _, ternary = plain(dtype=torch.bfloat16)
    ternary.set_scale(torch.full((48, 1), 0.25))
    ternary.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    before = ternary(x)
    layer = LowRankBitLinear.of(ternary, 3)
    assert {layer.low_rank_u.dtype, layer.low_rank_v.dtype} == {torch.bfloat16}
    assert torch.equal(layer(x), before)
    with held_codes(layer), torch.no_grad():
        assert torch.equal(copy.deepcopy(filled(layer))(x), layer(x))
    assert "low_rank_u" in layer.state_dict() and "weight_scale" in layer.state_dict()


@pytest.mark.parametrize("rank", [0, 49])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    with pytest.raises(InputError, match=f"found rank {rank}, a 48 x 64 layer takes 1 to 48"):
        LowRankBitLinear.of(plain()[1], rank)


def test_names_and_second_factors_are_refused() -> None:
    model = nn.Sequential(plain()[1], nn.ReLU())
    with pytest.raises(InputError, match="1 is no ternary layer"):
        add_factors(model, {"1": 2})
    add_factors(model, {"0": 2})
    assert [(name, layer.rank) for name, layer in low_rank_linears(model)] == [("0", 2)]
    with pytest.raises(InputError, match="0: low rank: a LowRankBitLinear cannot take factors"):
        add_factors(model, {"0": 2})


def test_the_error_from_moments_is_the_error_from_vectors() -> None:
    weight, x, y = problem()
    product = weight.sign() * 0.7
    target = torch.randn(24, 3, dtype=torch.float64) @ torch.randn(3, 40, dtype=torch.float64) / 9
    found = squared_error(weight - target, product, Moments.of(x, y))
    assert found == pytest.approx(error(weight, product, target, x, y), rel=1e-9)


@pytest.mark.parametrize("rows", [24, 60])
def test_the_factors_are_what_gradient_descent_finds(rows: int) -> None:
    weight, x, y = problem(rows=rows)
    product = weight.sign() * 0.7
    u, v = optimal_factors(weight, product, Moments.of(x, y), 3, 1e-12)
    ours = error(weight, product, u @ v, x, y)
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    a, b = draw(rows, 3).requires_grad_(), draw(3, 40).requires_grad_()
    descent = torch.optim.LBFGS([a, b], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Any:
        descent.zero_grad()
        loss = (x @ (weight - a @ b).t() - y @ product.t()).square().sum()
        loss.backward()
        return loss

    descent.step(closure)  # type: ignore[no-untyped-call]
    best = error(weight, product, (a @ b).detach(), x, y)
    assert ours <= best * (1 + 1e-9)
    assert best <= ours * 1.001  # the descent did arrive
    for _ in range(50):
        assert error(weight, product, (u + 0.01 * draw(*u.shape)) @ (v + 0.01 * draw(*v.shape)), x, y) > ours


@pytest.mark.parametrize("spec", [TernarySpec("tensor"), TernarySpec("row"), GROUPS], ids=str)
def test_no_alternation_raises_the_error_and_factors_lower_it(spec: TernarySpec) -> None:
    weight, x, y = problem()
    fits = [fit_low_rank(weight, Moments.of(x, y), rank, spec, alternations=4, epsilon=1e-9) for rank in (1, 4, 12)]
    for fit in fits:
        steps = (fit.error_before, *fit.errors)
        assert all(later <= earlier for earlier, later in pairwise(steps))
        assert fit.errors[0] < fit.error_before
        assert fit.errors[-1] < 0.97 * fit.errors[0]  # alternating is worth its time
        product, target = ternary_product(fit.ternary, spec, torch.float32), (fit.u @ fit.v).double()
        last = error(weight, product, target, x, y) / float((x @ weight.t()).square().sum())
        assert last == pytest.approx(fit.errors[-1], rel=1e-3)
    assert fits[0].errors[-1] > fits[1].errors[-1] > fits[2].errors[-1]


def test_full_rank_recovers_the_output() -> None:
    weight, x, y = problem()
    fit = fit_low_rank(weight, Moments.of(x, y), 24, GROUPS, epsilon=1e-12)
    assert fit.error_before > 0.05
    assert fit.errors[-1] < 1e-9


def test_before_any_factor_the_codes_are_second_order_rounding_for_unrounded_inputs() -> None:
    weight, x, _ = problem()
    fit = fit_low_rank(weight, Moments.of(x, x), 2, GROUPS, alternations=0)
    plain_codes = ternarize_with_feedback(weight.float(), inverse_factor((x.t() @ x).float(), 0.05), GROUPS)
    assert torch.equal(fit.ternary.latent, plain_codes.latent)
    assert torch.equal(fit.ternary.scale, plain_codes.scale)


def test_what_factors_cost() -> None:
    assert factor_bits(4096, 4096, 410) == pytest.approx(3.2, abs=0.01)  # a tenth of the width: 3.2 bits a weight
    assert factor_bits(4096, 4096, 16) == 0.125
