"""Int8 and fp8 products against exact integers, float64, plain emulation, and the float product's gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.quant.activation import quantize_activation
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, held_codes
from wrinklefree.quant.fp8 import SCALINGS, Scaling, fp8_product, fp8_product_reference, to_fp8
from wrinklefree.quant.int8 import integer_product, scaled_product
from wrinklefree.quant.products import Products, set_products
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, dequantize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def layer(
    spec: TernarySpec, learned: bool = False, inputs: int = 100, outputs: int = 24, bias: bool = True
) -> BitLinear:
    torch.manual_seed(0)
    made = BitLinear(inputs, outputs, bias, spec, QuantStrength(1.0))
    if learned:
        made.set_scale(absmean_scale(made.weight, spec) * 1.1)
    return made


@pytest.mark.parametrize("device", DEVICES)
@given(rows=st.integers(1, 40), inputs=st.integers(1, 130), outputs=st.integers(1, 40), seed=st.integers(0, 99))
@example(rows=1, inputs=1, outputs=2, seed=0)
@settings(deadline=None, max_examples=40)
def test_integer_products_are_exact(device: str, rows: int, inputs: int, outputs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8, generator=generator)
    codes = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, generator=generator)
    found = integer_product(x.to(device), codes.to(device))
    assert found.dtype == torch.int32 and torch.equal(found.cpu().long(), x.long() @ codes.long().t())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
def test_int8_output_is_the_float64_reference_to_the_rounding_of_its_scales(spec: TernarySpec, learned: bool) -> None:
    """Integers are exact; each group adds a product and a sum, then one division: (groups + 2) roundings of 2^-24."""
    made, x = layer(spec, learned), torch.randn(7, 100)
    codes, scale = made.ternary()
    integers, x_scale = quantize_activation(x)
    found = scaled_product(integers, x_scale, codes, scale, spec).double()
    expected = integers.double() @ dequantize(codes, scale, spec).double().t() / x_scale.double()
    # Relative to the sum of magnitudes of the groups' parts.
    groups = [slice(a, a + 64) for a in (0, 64)] if spec.granularity == "group" else [slice(None)]
    dense = dequantize(codes, scale, spec).double()
    size = sum((integers[:, g].double() @ dense[:, g].t()).abs() for g in groups) / x_scale.double()
    assert bool(((found - expected).abs() <= (len(groups) + 2) * 2**-24 * size + 1e-30).all())
    set_products(nn.Sequential(made), Products("int8"))
    whole = made(x)
    assert torch.equal(whole, found.float() + made.bias)


def gradients(made: BitLinear, x: Tensor, weight: Tensor) -> list[Tensor]:
    made.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_()
    y = made(x)
    y.backward(weight.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in made.parameters())]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("shape", [(7, 100), (2, 5, 100)])
def test_int8_gradients_are_the_float_products(spec: TernarySpec, learned: bool, shape: tuple[int, ...]) -> None:
    """The same operands in the same products; a library may block them otherwise, hence the rounding of 24 sums."""
    made, x, weight = layer(spec, learned), torch.randn(shape), torch.randn(*shape[:-1], 24)
    expected = gradients(made, x, weight)
    products = Products("int8")
    set_products(nn.Sequential(made), products)
    found = gradients(made, x, weight)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    assert products.counts == {"int8": 1}


def test_bfloat16_layers_and_autocast_have_the_dtype_of_a_linear_layer() -> None:
    made = copy.deepcopy(layer(TernarySpec("row"), inputs=64, outputs=32)).bfloat16()
    x = torch.randn(4, 64)
    for kind, module, inputs in (("int8", made, x.bfloat16()), ("fp8", made, x.bfloat16())):
        expected = gradients(module, inputs, torch.ones(4, 32))
        set_products(nn.Sequential(module), Products(kind, min_size=1))  # type: ignore[arg-type]
        found = gradients(module, inputs, torch.ones(4, 32))
        set_products(nn.Sequential(module), None)
        assert [a.dtype for a in found] == [b.dtype for b in expected]
        assert torch.allclose(found[0], expected[0], rtol=0.1, atol=0.1)
    wide = layer(TernarySpec("row"), inputs=64, outputs=32)
    for kind in ("float", "int8", "fp8"):
        set_products(nn.Sequential(wide), None if kind == "float" else Products(kind, min_size=1))  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16):
            y = wide(x)
        assert y.dtype == torch.bfloat16
        y.sum().backward()
        assert wide.weight.grad is not None and wide.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_is_its_emulation_near_float_and_not_equal_to_it(device: str, scaling: Scaling) -> None:
    """A cast to e4m3 rounds by at most 2^-4 of a value (three bits of mantissa), the output to bfloat16 by 2^-8."""
    torch.manual_seed(0)
    x, weight = torch.randn(48, 128, device=device), torch.randn(32, 128, device=device)
    low = to_fp8(weight, scaling)
    found = fp8_product(x, low, scaling)
    emulated = fp8_product_reference(x, low, scaling)
    size = (x.abs() @ weight.abs().t()).cpu()
    assert found.dtype == torch.bfloat16
    # On a GPU the sums of a tile are kept in fewer bits than float32.
    assert bool(((found.float() - emulated).abs().cpu() <= 2**-8 * emulated.abs().cpu() + 2**-12 * size).all())
    exact = (x @ weight.t()).cpu()
    error = (found.float().cpu() - exact).abs()
    # Two operands, each off by 2^-4 of itself, or by less than the smallest step (2^-10 of the factor).
    assert bool((error <= (2 * 2**-4 + 2**-8) * size + 2**-8 * exact.abs()).all())
    assert not torch.equal(found.float().cpu(), exact.bfloat16().float())


def test_ternary_rows_are_exact_in_fp8() -> None:
    """The second rounding falls on the inputs alone."""
    made = layer(TernarySpec("row"), bias=False)
    low = to_fp8(made.effective_weight(), "rowwise")
    assert torch.allclose(low.codes.float() * low.factor, made.effective_weight(), rtol=2**-22)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_fp8_layers_have_the_float_products_gradients(scaling: Scaling) -> None:
    made, x, weight = layer(TernarySpec("row"), inputs=128, outputs=32), torch.randn(3, 8, 128), torch.randn(3, 8, 32)
    expected = gradients(made, x, weight)
    products = Products("fp8", scaling, min_size=1)
    set_products(nn.Sequential(made), products)
    found = gradients(made, x, weight)
    assert products.counts == {"fp8": 1} and not torch.equal(found[0], expected[0])
    assert torch.allclose(found[0], expected[0], atol=0.1 * float(expected[0].abs().max()))
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))


def test_what_falls_back_is_counted_and_said_once() -> None:
    said: list[str] = []
    made, small = layer(TernarySpec("row"), inputs=96, outputs=32), layer(TernarySpec("row"), inputs=100, outputs=32)
    model = nn.ModuleList([made, small])
    products = Products("fp8", min_size=40, say=said.append)
    assert set_products(model, products) == 2
    made(torch.randn(2, 96))
    made(torch.randn(2, 96))
    assert products.counts == {"float: layers below model.fp8_min_size=40": 2} and len(said) == 1
    products.min_size = 16
    made(torch.randn(2, 96))
    small(torch.randn(2, 100))
    assert products.counts["fp8"] == 1 and products.counts["float: sizes not divisible by 16"] == 1
    assert said[1].startswith("WARNING: model.compute=fp8: some products are computed in float: sizes not")
    assert products.summary() == (
        "forward products: float: layers below model.fp8_min_size=40 2 (50.0%), fp8 1 (25.0%), "
        "float: sizes not divisible by 16 1 (25.0%)"
    )


def test_int8_waits_for_full_strength_and_for_every_column() -> None:
    made, products = layer(TernarySpec("row")), Products("int8")
    set_products(nn.Sequential(made), products)
    x = torch.randn(2, 100)
    made.strength.value = 0.5
    blended = made(x)
    assert torch.equal(blended, copy.deepcopy(made)(x.clone()))
    made.strength.value = 1.0
    made.kept_columns = torch.arange(100) < 3
    made(x)
    made.kept_columns = None
    made(x)
    assert products.counts == {"float: strength below 1": 1, "float: columns kept in full precision": 1, "int8": 1}
    made.strength.value = 0.0
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))  # T11


def test_weights_are_cast_once_for_the_micro_batches_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    made = layer(TernarySpec("row"), inputs=64, outputs=32)
    set_products(nn.Sequential(made), Products("fp8", min_size=1))
    with held_codes(nn.Sequential(made)):
        made(torch.randn(2, 64))
        low = made.held().derived["fp8 rowwise"]
        made(torch.randn(2, 64))
        assert made.held().derived["fp8 rowwise"] is low
    assert made._cache is None


def test_exclusions_name_layers() -> None:
    model = nn.ModuleDict({"up_proj": layer(SPECS[1]), "down_proj": layer(SPECS[1])})
    products = Products("int8")
    assert set_products(model, products, ["down_proj"]) == 1
    assert model["up_proj"].products is products and model["down_proj"].products is None
    with pytest.raises(InputError, match=r"did you mean 'down_proj'"):
        set_products(model, products, ["down_prj"])
    with pytest.raises(InputError, match="no ternary layer is left"):
        set_products(model, products, ["up_proj", "down_proj"])


@pytest.mark.gpu
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_triton_int8_is_the_plain_one(spec: TernarySpec) -> None:
    """Same integers; the order of the groups' sums is the same, so only the last bit of a fused product may differ."""
    from wrinklefree.quant.int8_triton import scaled_product as fused

    made, x = layer(spec), torch.randn(70, 100)
    codes, scale = made.ternary()
    integers, x_scale = quantize_activation(x)
    expected = scaled_product(integers, x_scale, codes, scale, spec)
    found = fused(*(tensor.cuda() for tensor in (integers, x_scale, codes, scale)), spec)  # type: ignore[call-arg]
    assert torch.allclose(found.cpu(), expected, rtol=1e-6, atol=1e-6)
