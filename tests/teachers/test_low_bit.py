"""Weights in 8 and 4 bits: the errors their steps allow, the memory they promise, and the same teacher by and large.

Bounds. int8: at most half a step, max|row| / 254. nf4: at most half the widest gap of the levels, (1 - 0.696) / 2 of
the block's maximum, plus float16's 2^-11 of it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from train_toys import toy_batch, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.teachers.low_bit import _LEVELS, LowBitLinear, reduce_weights, weight_bytes


def test_int8_is_within_half_a_step() -> None:
    linear = nn.Linear(100, 30)
    reduced = LowBitLinear(linear, "int8")
    step = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert bool(((reduced.weight(torch.float32) - linear.weight).abs() <= step * 0.5001).all())
    assert reduced.codes.dtype == torch.int8 and reduced.codes.numel() == 3000


def test_nf4_takes_the_nearest_level() -> None:
    """Compared with a search through all 16 levels; 100 columns are a block of 64 and a padded one."""
    linear = nn.Linear(100, 30)
    found = LowBitLinear(linear, "nf4").weight(torch.float32)
    padded = nn.functional.pad(linear.weight.detach(), (0, 28)).view(30, 2, 64)
    scale = padded.abs().amax(dim=2, keepdim=True).half().float()
    levels = torch.tensor(_LEVELS)
    nearest = levels[((padded / scale)[..., None] - levels).abs().argmin(dim=-1)] * scale
    torch.testing.assert_close(found, nearest.view(30, 128)[:, :100], rtol=0, atol=1e-7)
    bound = (0.5 * (1 - 0.6962) + 2**-11) * scale.expand(30, 2, 64).reshape(30, 128)[:, :100]
    assert bool(((found - linear.weight).abs() <= bound).all())


@pytest.mark.parametrize(("bits", "most", "agree"), [("int8", 0.26, 0.03), ("nf4", 0.15, 0.4)])
def test_a_teacher_in_fewer_bits_takes_less_memory_and_says_nearly_the_same(
    bits: Any, most: float, agree: float
) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 512, "initializer_range": 0.05}
    model, reduced, batch = toy_model(1, **wide), toy_model(1, **wide), toy_batch()
    reduce_weights(reduced, bits)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    before = sum(layer.weight.numel() * 4 for layer in layers)
    after = weight_bytes(reduced) - (weight_bytes(model) - before)
    assert after < most * before  # 1/4 and scales; 1/8 and a float16 for 64 weights
    teachers = [LocalTeacher(lambda m=m: m, forward, top_k=64) for m in (model, reduced)]  # type: ignore[misc]
    one, other = (teacher.forward(batch, frozenset()) for teacher in teachers)
    dense = [torch.zeros_like(o.log_probs).scatter(2, o.ids, o.log_probs) for o in (one, other)]
    difference = (dense[0] - dense[1]).abs().mean()
    # Not derived: three times what was seen; a wrong level or scale gives more than 1.
    assert 0.0 < difference < agree
    assert type(reduced.get_submodule("lm_head")) is nn.Linear  # the losses read the head as it is


def test_bfloat16_inputs_stay_bfloat16_and_a_ternary_teacher_is_refused() -> None:
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    for bits in ("int8", "nf4"):
        assert LowBitLinear(nn.Linear(64, 8).bfloat16(), bits)(x).dtype == torch.bfloat16  # type: ignore[arg-type]
    with pytest.raises(InputError, match="this teacher is ternary"):
        reduce_weights(toy_model(1, ternary=True), "int8")
