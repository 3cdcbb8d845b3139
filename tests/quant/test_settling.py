"""Settled latents keep their codes and stand away from the thresholds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.settling import THRESHOLD, settle, settled
from wrinklefree.quant.ternary import TernarySpec, expand_scale, storable, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]
# What float32 products and quotients may lose beside values of about one.
ROUNDING = 1e-6


@settings(deadline=None)
@given(
    spec=st.sampled_from(SPECS), rows=st.integers(1, 5), columns=st.integers(1, 200), margin=st.floats(0.01, 0.5),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_codes_stay_and_no_latent_is_near_a_threshold(
    spec: TernarySpec, rows: int, columns: int, margin: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 0.1
    scale = storable(torch.rand(spec.scale_shape(rows, columns), generator=generator) * 0.2, spec)
    expanded = expand_scale(scale, spec, columns)
    weight[0, 0] = THRESHOLD * expanded.expand_as(weight)[0, 0]  # on the threshold itself
    found = settled(weight, scale, spec, margin)
    assert torch.equal(ternarize(found, spec, scale)[0], ternarize(weight, spec, scale)[0])
    apart = ((found / expanded).abs() - THRESHOLD).abs()
    assert float(apart.min()) >= margin - ROUNDING
    far = ((weight / expanded).abs() - THRESHOLD).abs() >= margin
    assert torch.equal(found[far], weight[far])
    assert torch.allclose(settled(found, scale, spec, margin), found, rtol=ROUNDING, atol=0.0)


def test_a_moved_latent_keeps_its_sign_and_a_zero_stays() -> None:
    spec = TernarySpec("row")
    weight = torch.tensor([[-0.51, -0.49, 0.0, 0.45, 0.5, 0.55, 0.9]])
    expected = torch.tensor([[-0.6, -0.4, 0.0, 0.4, 0.4, 0.6, 0.9]])  # one half rounds to zero: to even
    assert torch.allclose(settled(weight, torch.ones(1), spec, 0.1), expected)
    assert torch.equal(settled(weight, torch.ones(1), spec, 0.0), weight)


def test_rounding_to_bfloat16_changes_no_code() -> None:
    spec, generator = TernarySpec("row"), torch.Generator().manual_seed(0)
    weight = (torch.randn(50, 400, generator=generator) * 0.1).bfloat16()
    scale = torch.rand(50, generator=generator) * 0.2
    found = settled(weight, scale, spec, 0.01)
    assert found.dtype == torch.bfloat16
    assert torch.equal(ternarize(found, spec, scale)[0], ternarize(weight, spec, scale)[0])


def test_a_model_is_settled_where_that_changes_nothing() -> None:
    spec, generator = TernarySpec("row"), torch.Generator().manual_seed(0)
    own, kept, absmean = (BitLinear(64, 8, False, spec, QuantStrength()) for _ in range(3))
    for layer in (own, kept, absmean):
        nn.init.normal_(layer.weight, std=0.1, generator=generator)
    own.set_scale(torch.full((8,), 0.08))
    kept.set_scale(torch.full((8,), 0.08))
    kept.kept_columns = torch.arange(64) < 5
    model = nn.Sequential(own, nn.Linear(8, 64), kept, nn.Linear(8, 64), absmean)
    x = torch.randn(3, 64, generator=generator)
    before, latents = model(x), [layer.weight.detach().clone() for layer in (own, kept, absmean)]
    assert settle(model, 0.0) == 0 and settle(model, 0.2) == 2
    assert torch.equal(model(x), before)
    assert not torch.equal(own.weight, latents[0])
    same = (kept.weight == latents[1]).all(0)
    assert same[:5].all() and not same[5:].all()
    assert torch.equal(absmean.weight, latents[2])
    for wrong in (-0.1, 0.001, 0.6, float("nan")):
        with pytest.raises(InputError, match="margin: found"):
            settle(model, wrong)
