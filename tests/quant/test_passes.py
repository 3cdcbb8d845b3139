"""The compiled passes of training against the torch operations they stand for, for every instruction set that runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from wrinklefree.quant import passes as p
from wrinklefree.quant.activation import quantize_activation
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.ternary import TernarySpec, absmean_scale

BF16 = torch.bfloat16
ULP = 2.0**-8  # half a step of bfloat16, relative


def runnable() -> list[str]:
    names = []
    for name in ("plain", "avx2", "avx512"):
        try:
            names += [name] if p.passes(name) else []
        except ValueError:
            continue
    return names


@pytest.fixture(params=["plain", "avx2", "avx512"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param not in runnable():
        pytest.skip(f"no {request.param} passes here: they were not compared with torch")
    found = p.passes(request.param)
    monkeypatch.setattr(p, "passes", lambda: found)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    yield request.param


def codes(rounded: Tensor, x: Tensor) -> Tensor:
    """The int8 codes of rounded rows: bfloat16 has 8 bits, enough to tell 255 levels apart."""
    return (rounded.float() * quantize_activation(x)[1]).round()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 99), size=st.sampled_from([1e-8, 1.0, 1e4])
)
def test_rounding_gives_the_codes_of_quantize_activation(rows: int, columns: int, seed: int, size: float) -> None:
    """Equal inputs, equal codes; also of rows of zeros and of tiny values, and in the transposed copy."""
    torch.manual_seed(seed)
    x = (torch.randn(rows, columns) * size).to(BF16)
    x[0] = 0.0
    rounded, turned = p.quantize(x, False, True)
    expected, scale = quantize_activation(x.float())
    assert torch.equal(codes(rounded, x.float()), expected.float())
    torch.testing.assert_close(rounded.float(), expected / scale, rtol=ULP, atol=0.0)
    assert turned is not None and torch.equal(turned, rounded.t())
    assert p.quantize(x, False, False)[1] is None


def test_a_gated_product_and_its_gradient() -> None:
    """Codes of float32 products: one level off where e^x of the two differs in its last bits."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(37, 44) * 30, torch.randn(37, 44)], dim=1).to(BF16)
    leaf = x.double().requires_grad_()
    product = F.silu(leaf[:, :44]) * leaf[:, 44:]
    rounded, turned = p.quantize(x, True, True)
    gap = codes(rounded, product.detach().float()) - quantize_activation(product.detach().float())[0]
    assert gap.abs().max() <= 1 and gap.count_nonzero() <= 2
    assert turned is not None and torch.equal(turned, rounded.t())
    upstream = torch.randn(37, 44).to(BF16)
    product.backward(upstream.double())
    assert leaf.grad is not None
    torch.testing.assert_close(p.gate_gradient(x, upstream).double(), leaf.grad, rtol=1.01 * ULP, atol=1e-6)


@pytest.mark.parametrize("added", [False, True])
def test_a_norm_rounded_and_its_gradient(added: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(53, 70) * torch.logspace(-2, 3, 53)[:, None], torch.randn(70)
    more = torch.randn(53, 70).to(BF16) if added else None
    total, rounded, turned, factor = p.norm_quantize(x, more, weight, 1e-5, True)
    expected = x if more is None else x + more
    assert torch.equal(total, expected)
    leaf, gain = expected.double().requires_grad_(), weight.double().requires_grad_()
    normed = leaf * torch.rsqrt(leaf.square().mean(-1, keepdim=True) + 1e-5) * gain
    gap = codes(rounded, normed.detach().float()) - quantize_activation(normed.detach().float())[0]
    assert gap.abs().max() <= 1 and gap.count_nonzero() <= 3, "sums in another order move a value across a boundary"
    assert turned is not None and torch.equal(turned, rounded.t())
    gradient, upstream = torch.randn(53, 70).to(BF16), torch.randn(53, 70)
    normed.backward(gradient.double())
    for_x, narrow, for_weight = p.norm_gradient(total, factor, weight, gradient, upstream, True)
    assert leaf.grad is not None and gain.grad is not None
    torch.testing.assert_close(for_x.double(), leaf.grad + upstream, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(for_weight.double(), gain.grad, rtol=1e-5, atol=1e-4)
    assert narrow is not None and torch.equal(narrow, for_x.to(BF16))


@pytest.mark.parametrize("shared", [False, True])
def test_rotary_heads_and_back(shared: bool) -> None:
    """The definition x cos + rotate_half(x) sin, and its gradient by autograd."""
    torch.manual_seed(0)
    batch, length, heads, keys, size = 2, 7, 6, 2, 12
    cosines, sines = (torch.randn(1 if shared else batch, length, size) for _ in range(2))
    joined = torch.randn(batch, length, (heads + 2 * keys) * size).to(BF16)
    leaf = joined.double().requires_grad_()
    parts = leaf.view(batch, length, -1, size).transpose(1, 2).split([heads, keys, keys], dim=1)

    def rotated(x: Tensor) -> Tensor:
        half = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
        return x * cosines[:, None] + half * sines[:, None]

    expected = rotated(parts[0]), rotated(parts[1]), parts[2]
    found = p.split_heads(joined, cosines, sines, heads, keys)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.detach(), rtol=ULP, atol=1e-6)
    gradients = [torch.randn(part.shape).to(BF16) for part in expected]
    torch.autograd.backward(expected, [gradient.double() for gradient in gradients])
    assert leaf.grad is not None
    back = p.join_heads(*gradients, cosines, sines)
    torch.testing.assert_close(back.double(), leaf.grad, rtol=1.01 * ULP, atol=1e-6)


def test_probabilities_and_their_gradient() -> None:
    torch.manual_seed(0)
    batch, length, heads, keys, scale = 2, 19, 4, 2, 0.3
    mask = torch.rand(batch, 1, length, length) < 0.5
    mask |= torch.eye(length, dtype=torch.bool)
    scores = (10 * torch.randn(batch * keys, heads // keys * length, length)).to(BF16)
    slopes = torch.randn_like(scores)
    each = scores.double().view(batch, heads, length, length).mul(scale).masked_fill(~mask, -torch.inf)
    each.requires_grad_()
    probs = each.softmax(-1)
    probs.backward(slopes.double().view_as(each))
    assert each.grad is not None
    log_sum = each.detach().logsumexp(-1).transpose(1, 2).float().contiguous()
    p.attention_gradient(scores, slopes, mask, log_sum, scale)
    torch.testing.assert_close(scores.view_as(each).double(), probs.detach(), rtol=1.01 * ULP, atol=1e-6)
    torch.testing.assert_close(slopes.view_as(each).double(), scale * each.grad, rtol=1.01 * ULP, atol=1e-6)


@pytest.mark.parametrize("spec", [TernarySpec("group", 64), TernarySpec("row"), TernarySpec("tensor")], ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_weights_and_their_gradients_are_those_of_bitlinear(spec: TernarySpec, learned: bool, turned: bool) -> None:
    """The same rounded weights; the same latents' gradient, of the scales a sum in another order."""
    torch.manual_seed(0)
    rows, columns = 37, 150
    layer = BitLinear(columns, rows, False, spec, QuantStrength())
    if learned:
        layer.set_scale(absmean_scale(layer.weight.detach(), spec) * 0.7)
    scale, group = p.weight_scale(layer)
    out = torch.empty(rows, columns, dtype=BF16)
    p.quantize_weight(layer, scale, group, out)
    weight = layer.effective_weight()
    assert torch.equal(out, weight.detach().to(BF16))
    gradient = torch.randn(columns, rows + 3)[:, :rows].t() if turned else torch.randn(rows, columns)
    gradient = gradient.to(BF16) if not turned else torch.randn(columns, rows + 3).to(BF16)[:, :rows].t()
    weight.backward(gradient.float())
    for_latent, for_scale = p.weight_gradient(layer, scale, group, gradient, True)
    assert layer.weight.grad is not None and torch.equal(for_latent, layer.weight.grad)
    if layer.weight_scale is None:
        assert for_scale is None
    else:
        assert for_scale is not None and layer.weight_scale.grad is not None
        torch.testing.assert_close(for_scale, layer.weight_scale.grad, rtol=1e-4, atol=1e-4)


def test_a_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_gradient"):
        layer = BitLinear(8, 8, False, TernarySpec(), QuantStrength())
        p.weight_gradient(layer, torch.ones(8, 2), 64, torch.zeros(8, 8, dtype=BF16), False)
    with pytest.raises(TypeError):
        p.quantize(torch.zeros(2, 4), False, False)
