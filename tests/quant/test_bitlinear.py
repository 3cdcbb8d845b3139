"""`BitLinear` against `nn.Linear` (strength 0) and against the equations written out (strength 1); its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from wrinklefree.errors import InputError
from wrinklefree.quant import bitlinear
from wrinklefree.quant.activation import fake_quantize_activation, quantize_activation
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, full_strength, held_codes, quant_strength
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, dequantize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]


def layer(spec: TernarySpec, learned: bool = False, strength: float = 1.0, bias: bool = True) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(100, 12, bias, spec, QuantStrength(strength))
    if learned:
        made.set_scale(absmean_scale(made.weight, spec) * 1.1)
    return made


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_t11_at_strength_zero_it_is_a_linear_layer(spec: TernarySpec, learned: bool) -> None:
    made = layer(spec, learned, strength=0.0)
    x = torch.randn(3, 5, 100)
    assert torch.equal(made(x), F.linear(x, made.weight, made.bias))


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_at_full_strength_it_is_the_integer_product(spec: TernarySpec, learned: bool) -> None:
    made = layer(spec, learned)
    x = torch.randn(6, 100)
    codes, scale = made.ternary()
    x_codes, x_scale = quantize_activation(x)
    expected = x_codes.double() @ dequantize(codes, scale, spec).double().t() / x_scale + made.bias
    # 100 float32 products: each rounding is 2^-24 of a partial sum no larger than sum |x w|.
    bound = 100 * 2**-23 * float((x.abs() @ dequantize(codes, scale, spec).abs().t()).max())
    assert float((made(x) - expected).detach().abs().max()) <= bound


@pytest.mark.parametrize("strength", [0.25, 0.5])
@pytest.mark.parametrize("learned", [False, True])
def test_between_it_interpolates_weights(strength: float, learned: bool) -> None:
    spec = TernarySpec("row")
    made = layer(spec, learned, strength)
    quantized = dequantize(*made.ternary(), spec)
    expected = made.weight + strength * (quantized - made.weight)
    assert torch.allclose(made.effective_weight(), expected, atol=1e-7)


def test_absmean_gradient_is_straight_through() -> None:
    made = layer(TernarySpec("row"))
    gradient = torch.randn(12, 100)
    made.effective_weight().backward(gradient)
    assert torch.equal(made.weight.grad, gradient)


def test_learned_scale_gradients_are_those_of_codes_times_scale() -> None:
    spec = TernarySpec("group", 64)
    made = layer(spec, learned=True)
    with torch.no_grad():
        made.weight[0, 0] = 10.0  # far beyond the last threshold: out of reach of the gradient
    codes, _ = made.ternary()
    gradient = torch.randn(12, 100)
    made.effective_weight().backward(gradient)
    expected = (gradient * codes).double()
    by_group = torch.stack([expected[:, :64].sum(1), expected[:, 64:].sum(1)], dim=1)
    assert torch.allclose(made.weight_scale.grad.double(), by_group, atol=1e-4)
    assert made.weight.grad[0, 0] == 0.0
    inside = made.weight.abs() <= 1.5 * made.weight_scale.repeat_interleave(64, dim=1)[:, :100]
    assert torch.equal(made.weight.grad, gradient * inside)


def test_a_fused_optimizer_step_is_seen() -> None:
    """Fused steps do not raise a parameter's version: codes must not be cached behind the caller's back."""
    made = layer(TernarySpec("row"), learned=True)
    before = made.ternary()[0].clone()
    x = torch.randn(4, 100)
    first = made(x)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1, fused=True)
    first.square().sum().backward()
    optimizer.step()
    assert not torch.equal(made.ternary()[0], before)
    codes, scale = made.ternary()
    assert torch.allclose(made.effective_weight(), dequantize(codes, scale, made.spec))


def test_held_codes_are_computed_once_and_forgotten_afterwards() -> None:
    made = layer(TernarySpec("row"))
    model = nn.Sequential(made)
    x = torch.randn(2, 100)
    with held_codes(model):
        first = model(x)
        with torch.no_grad():
            made.weight.mul_(-1)  # against the rule, to see that nothing is recomputed
        assert made.held() is made.held()
    assert not torch.allclose(model(x), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_the_weight_of_the_forward_is_codes_times_scale_to_the_bit(
    spec: TernarySpec, learned: bool, dtype: torch.dtype
) -> None:
    for columns in (100, 128):  # the last group is short, or whole
        torch.manual_seed(columns)
        made = BitLinear(columns, 12, False, spec, QuantStrength(1.0), dtype=dtype)
        if learned:
            made.set_scale(absmean_scale(made.weight, spec) * 1.1)
        codes, scale = made.ternary()
        expected = codes.to(dtype) * dequantize(torch.ones_like(codes), scale, spec).to(dtype)
        assert torch.equal(made.effective_weight(), expected)
        with torch.no_grad():
            assert torch.equal(made.effective_weight(), expected)


def test_activations_are_rounded_as_the_equation_says_to_the_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = (torch.randn(64, 100) * torch.logspace(-7, 7, 64)[:, None]).to(dtype)
        scale = 127.0 / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-5)
        codes = (x * scale).round().clamp(-128, 127)
        assert torch.equal(fake_quantize_activation(x, 1.0), codes / scale)
        assert torch.equal(quantize_activation(x)[0], codes.to(torch.int8))


class Branches(nn.Module):
    """Two layers that read the same tensor and one that reads another, as in an MLP."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        strength = QuantStrength(1.0)
        sizes = ((100, 12), (100, 12), (12, 5))
        self.gate, self.up, self.down = (BitLinear(a, b, False, TernarySpec("row"), strength) for a, b in sizes)

    def forward(self, x: torch.Tensor, apart: bool = False) -> torch.Tensor:
        x = x * 1.0
        out: torch.Tensor = self.down(self.gate(x) * self.up(x * 1.0 if apart else x))
        return out


def test_layers_that_read_the_same_tensor_share_its_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients are those of layers that round for themselves; the input is rounded once."""
    calls = []
    real = fake_quantize_activation
    monkeypatch.setattr(bitlinear, "fake_quantize_activation", lambda x, s: calls.append(1) or real(x, s))
    model, x = Branches(), torch.randn(7, 100, requires_grad=True)
    results = []
    for apart, expected in ((False, 2), (True, 3), (False, 2)):
        calls.clear()
        model.zero_grad(set_to_none=True)
        x.grad = None
        y = model(x, apart)
        y.square().sum().backward()
        assert len(calls) == expected
        results.append([y.detach(), x.grad, *(p.grad for p in model.parameters())])
    for one, two, three in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-6) and torch.equal(one, three)
    assert quant_strength(model).input is None  # nothing is kept after the layer that is alone with its input
    copy.deepcopy(model)


def test_a_shared_rounding_is_never_stale() -> None:
    model, x = Branches(), torch.randn(7, 100)
    with torch.no_grad():
        model.gate(x)
        x.mul_(-2.0)
        assert torch.equal(model.up(x), copy.deepcopy(model).up(x))
        model.gate(x)
    x.requires_grad_()
    model.up(x).sum().backward()
    assert x.grad is not None
    quant_strength(model).value = 1.0
    model.gate(x)
    quant_strength(model).value = 0.5
    assert torch.equal(model.up(x), copy.deepcopy(model).up(x.clone()))


def test_two_models_never_share_a_strength() -> None:
    one = nn.Sequential(layer(TernarySpec("row"), strength=0.0))
    two = copy.deepcopy(one)
    quant_strength(two).value = 1.0
    assert quant_strength(one).value == 0.0
    with full_strength(one):
        assert quant_strength(one).value == 1.0
    assert quant_strength(one).value == 0.0


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_strength_is_checked(value: float) -> None:
    with pytest.raises(InputError, match="0 to 1"):
        QuantStrength(value)


def test_a_scale_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(12, 2\)"):
        layer(TernarySpec("group", 64)).set_scale(torch.ones(12))
