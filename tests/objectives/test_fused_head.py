"""The fused head against the head pass it stands in for: same logits in bfloat16, sums in another order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wrinklefree.objectives import LogitsKD, NextToken
from wrinklefree.objectives import head as head_module
from wrinklefree.objectives.fused_head import FusedTerms
from wrinklefree.objectives.head import HeadInputs, HeadSums, HeadTerm, head_pass
from wrinklefree.quant.passes import passes

pytestmark = pytest.mark.skipif(passes() is None, reason="no compiled passes: the fused head was not compared")
BF16 = torch.bfloat16
N, D, V = 45, 24, 203


def inputs(**changes: Any) -> HeadInputs:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(D, V, bias=False)
    frozen = nn.Linear(D, V, bias=False, dtype=BF16)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator))
        frozen.weight.copy_(head.weight)
    states = torch.randn(N, D, generator=generator)
    taught = (states + 0.3 * torch.randn(N, D, generator=generator)).to(BF16)
    targets = torch.randint(V, (N,), generator=generator)
    return dataclasses.replace(HeadInputs(states, head, targets, taught, frozen, dtype=BF16), **changes)


def terms(entropy: float | None, **kd: Any) -> list[HeadTerm]:
    both = [HeadTerm("logits_kd", LogitsKD(**kd), 0.5 / N)]
    return both if entropy is None else [*both, HeadTerm("next_token", NextToken(), entropy / N)]


def run(given: HeadInputs, each: list[HeadTerm], chunk: int | None = None) -> tuple[Tensor, HeadSums, list[Tensor]]:
    states = given.states.clone().requires_grad_()
    total, sums = head_pass(dataclasses.replace(given, states=states), each, chunk)
    return total, sums, list(torch.autograd.grad(total, [states, given.head.weight], materialize_grads=True))


@pytest.mark.parametrize("entropy", [None, 0.0, 0.7])
@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize("banned", [None, 7])
def test_loss_metrics_and_gradients_are_those_of_the_head_pass(
    entropy: float | None, temperature: float, banned: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of logits are rounded to bfloat16 by both, at nearly the same values: a step of 2^-8 of one apart."""
    given, each = inputs(banned=banned), terms(entropy, temperature=temperature, temperature_squared=True)
    calls: list[int] = []
    real = FusedTerms.chunk
    monkeypatch.setattr(FusedTerms, "chunk", lambda self, *rest: calls.append(1) or real(self, *rest))
    total, sums, found = run(given, each, 20)
    assert len(calls) == 3, "45 tokens in chunks of 20"
    monkeypatch.setattr(head_module.FusedTerms, "of", staticmethod(lambda *_: None))
    expected, expected_sums, true = run(given, each, 20)
    assert len(calls) == 3
    torch.testing.assert_close(total, expected, rtol=2e-6, atol=1e-6)
    assert sums.sums.keys() == expected_sums.sums.keys()
    for name, value in expected_sums.sums.items():
        torch.testing.assert_close(sums.sums[name], value, rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(sums.metrics, expected_sums.metrics, rtol=2e-6, atol=1e-5)
    for mine, theirs in zip(found, true, strict=True):
        assert float((mine - theirs).norm()) <= 2.0**-8 * float(theirs.norm())


def test_a_measurement_alone_gives_no_gradient() -> None:
    given = inputs()
    with torch.no_grad():
        total, sums = head_pass(given, terms(0.7))
    expected, expected_sums, _ = run(given, terms(0.7))
    assert torch.equal(total, expected.detach()) and torch.equal(
        sums.sums["logits_kd"], expected_sums.sums["logits_kd"]
    )


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        ({"softcap": 30.0}, terms(0.0)),
        ({"weights": torch.ones(N)}, terms(0.0)),
        ({"dtype": None}, terms(0.0)),
        ({"teacher_states": None}, terms(0.0)),
        ({}, terms(0.0, divergence="reverse")),
        ({}, terms(0.0, top_k=5)),
        ({}, [*terms(0.0), HeadTerm("again", LogitsKD(), 1.0)]),
        ({}, [HeadTerm("next_token", NextToken(), 1.0)]),
        ({}, [*terms(None), HeadTerm("next_token", NextToken(label_smoothing=0.1), 1.0)]),
    ],
)
def test_what_it_does_not_compute_it_leaves_alone(changes: dict[str, Any], each: list[HeadTerm]) -> None:
    given = inputs(**changes)
    assert FusedTerms.of(given, each, given.dtype or torch.float32) is None
    assert FusedTerms.of(inputs(), terms(0.0), BF16) is not None


def test_equal_highest_logits_count_by_the_teachers_first() -> None:
    """As `Logits` does it: of the teacher's highest the first place; any of the student's highest counts."""
    from wrinklefree.quant.passes import distill

    student, teacher = torch.zeros(3, 40, dtype=BF16), torch.zeros(3, 40, dtype=BF16)
    teacher[:, [5, 37]] = 2.0
    student[0, [5, 9]], student[1, [9, 37]], student[2, [37]] = 1.0, 1.0, 1.0
    _, _, agreed = distill(student, teacher, torch.zeros(3, dtype=torch.int64), 1.0, 0.0, 0.0)
    assert agreed.tolist() == [True, False, False]
