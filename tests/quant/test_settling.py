"""Settled latents keep their codes and stand away from the thresholds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wrinklefree.quant.settling import THRESHOLD, settled
from wrinklefree.quant.ternary import TernarySpec, expand_scale, storable, ternarize

SPECS = [TernarySpec("tensor"), TernarySpec("row"), TernarySpec("group", 64)]
# What float32 products and quotients may lose beside values of about one.
ROUNDING = 1e-6


@given(
    spec=st.sampled_from(SPECS), rows=st.integers(1, 5), columns=st.integers(1, 200), margin=st.floats(0.001, 0.5),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_that_of_the_latents(dtype: torch.dtype) -> None:
    assert settled(torch.ones(2, 3, dtype=dtype), torch.ones(2), TernarySpec("row"), 0.1).dtype == dtype
