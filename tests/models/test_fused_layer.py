"""Fused decoder layers against the layers themselves: as near to float32 as bfloat16 autocast is; else left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.data.batch import TokenBatch
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.models.fused_layer import FusedForward, unfusable
from wrinklefree.models.subln import decoder_layers
from wrinklefree.quant.bitlinear import bit_linears, held_codes, quant_strength
from wrinklefree.quant.passes import passes
from wrinklefree.quant.products import Products, set_products
from wrinklefree.quant.ternary import TernarySpec, absmean_scale

pytestmark = pytest.mark.skipif(passes() is None, reason="no compiled passes: fused layers were not compared")


def toy(scales: bool = True, subln: Any = "none", **changes: Any) -> nn.Module:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=96, intermediate_size=150, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, initializer_range=0.2, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    convert_model(model, TernarySpec(), subln)
    for _, layer in bit_linears(model) if scales else ():
        layer.set_scale(absmean_scale(layer.weight.detach(), layer.spec))
    return model.train()


def batch() -> TokenBatch:
    """Two rows of 29: two documents, and one with padding behind it."""
    ids = torch.randint(0, 64, (2, 29), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0] * 11 + [1] * 18, [0] * 20 + [-1] * 9], dtype=torch.int32)
    positions = torch.tensor([[*range(11), *range(18)], [*range(20), *range(9)]])
    return TokenBatch(ids, ids.clone(), positions, documents)


def gradients(model: nn.Module, autocast: bool = True) -> dict[str, Tensor]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        final = forward(model, batch()).final
    (final * torch.randn(final.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"final": final.detach(), **named}


def fused(model: nn.Module, fallen: Callable[[str], None] | None = None) -> nn.Module:
    def never(reason: str) -> None:
        raise AssertionError(reason)

    other = copy.deepcopy(model)
    for layer in decoder_layers(other):
        assert unfusable(layer) is None
        layer.forward = FusedForward(layer, fallen or never)
    return other


def errors(found: dict[str, Tensor], true: dict[str, Tensor]) -> dict[str, float]:
    assert found.keys() == true.keys()
    return {name: float((found[name] - each).norm() / each.norm()) for name, each in true.items()}


@pytest.mark.parametrize("scales", [False, True])
def test_fused_layers_are_as_near_to_float32_as_autocast(scales: bool) -> None:
    """Both round to 8 bits at nearly the same places, so neither is nearer than the other by more than chance."""
    model = toy(scales)
    true = gradients(model, autocast=False)
    plain, fast = errors(gradients(model), true), errors(gradients(fused(model)), true)
    for name in true:
        assert fast[name] <= 1.5 * plain[name] + 0.01, f"{name}: {fast[name]:.4f}, autocast {plain[name]:.4f}"
        assert fast[name] < 0.12, name


def test_frozen_parameters_get_no_gradient_and_change_no_other() -> None:
    model = fused(toy())
    expected = gradients(model)
    frozen = ("embed_tokens", "layers.0.self_attn.q_proj.weight", "layers.1.mlp.up_proj.weight_scale")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in frozen))
    found = gradients(model)
    assert {name for name in expected if name not in found} == {
        "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.weight_scale", "model.layers.1.mlp.up_proj.weight_scale",
    }  # fmt: skip
    assert all(torch.equal(each, expected[name]) for name, each in found.items())


def test_a_step_rounds_its_weights_once_and_sees_new_ones_in_the_next() -> None:
    model = fused(toy())
    expected = gradients(model)
    with held_codes(model):
        first = gradients(model)
        with torch.no_grad():
            for _, layer in bit_linears(model):
                layer.weight.neg_()
        assert torch.equal(gradients(model)["final"], first["final"])
    assert all(torch.equal(each, expected[name]) for name, each in first.items())
    assert not torch.equal(gradients(model)["final"], expected["final"])


def test_recomputed_layers_give_the_same_bits() -> None:
    model = fused(toy())
    expected = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    assert all(torch.equal(each, expected[name]) for name, each in gradients(model).items())


def test_without_gradients_nothing_is_kept() -> None:
    model = fused(toy())
    expected = gradients(model)["final"]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(forward(model, batch()).final, expected)


def test_where_it_does_not_apply_the_layer_runs_as_it_is() -> None:
    plain, said = toy(), list[str]()
    model = fused(plain, said.append)

    def same(reason: str, autocast: bool = True) -> None:
        said.clear()
        true = gradients(plain, autocast)
        assert all(torch.equal(each, true[name]) for name, each in gradients(model, autocast).items())
        assert said and all(reason in each for each in said), said

    same("no bfloat16 precision", autocast=False)
    for each in (plain, model):
        quant_strength(each).value = 0.5
    same("strength below 1")
    for each in (plain, model):
        quant_strength(each).value = 1.0
        set_products(each, Products("int8"))
    same("computes in 8 bits")
    for each in (plain, model):
        set_products(each, None)
    handle = decoder_layers(model)[0].get_submodule("self_attn.q_proj").register_forward_hook(lambda *_: None)
    said.clear()
    gradients(model)
    handle.remove()
    assert len(said) == 1 and "hooks" in said[0]


def test_what_can_never_be_fused_says_why() -> None:
    assert "SubLN" in (unfusable(decoder_layers(toy(subln="ones"))[0]) or "")
    assert "without bias" in (unfusable(decoder_layers(toy(mlp_bias=True))[0]) or "")
    assert "gelu" in (unfusable(decoder_layers(toy(hidden_act="gelu"))[0]) or "")
    assert "not one of" in (unfusable(nn.Linear(1, 1)) or "")
