"""A causal diffusion student that learns from a teacher in its clean half, and from itself at its MASKs."""

from __future__ import annotations

import pytest
import torch
from test_block_diffusion import in_order_of_tokens, manager_of, predicting_state, without_mask
from test_noise import MASK, SETTINGS, documents
from torch import Tensor, nn
from train_toys import toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.objectives import CleanHalfKD, Drafts, LogitsKD
from wrinklefree.objectives.head import frozen_head
from wrinklefree.objectives.manager import Tally
from wrinklefree.objectives.noise import Diffusion, noised

EVERY = frozenset({LOGITS})


def naive_drafts(student: nn.Module, clean: TokenBatch, settings: Diffusion) -> Tensor:
    """KL(p || q), a loop: p of a forward over the clean text alone, q of the noised view, only noised states."""
    view = noised(clean, settings, MASK, 0)
    own, ours = forward(student, clean, EVERY).logits, forward(student, view, EVERY).logits
    assert own is not None and ours is not None
    total, count = torch.zeros(()), 0
    for row, slot in in_order_of_tokens(view):
        state = predicting_state(view, settings, row, slot)
        if state >= view.slots.shape[1]:
            continue  # the first token of a block: predicted by the clean state itself
        p = without_mask(own.detach().flatten(0, 1)[int(view.slots[row, slot]) - 1]).log_softmax(-1)
        q = without_mask(ours[row, state]).log_softmax(-1)
        total, count = total + (p.exp() * (p - q)).sum(), count + 1
    return total / count


@pytest.mark.parametrize("settings", [SETTINGS["causal"], Diffusion("causal", block_size=4, min_ratio=1.0)])
def test_drafts_imitate_the_next_token_distribution_of_the_clean_text(settings: Diffusion) -> None:
    student, clean, weights = toy_model(1), documents(), {"it": 1.0}
    manager = manager_of(settings, 7, it=Drafts())
    assert manager.taught == ()
    loss = manager.loss(student, clean, weights, manager.counts(clean, weights), None, Tally())
    loss.backward()
    ours = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    expected = naive_drafts(student, clean, settings)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for name, parameter in student.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=2e-4 * scale + 1e-8)


def test_the_clean_half_learns_from_the_teacher_without_a_forward_of_its_own() -> None:
    student, teacher, clean = toy_model(1), toy_model(2), documents()
    taught = forward(teacher, clean)
    manager = manager_of(SETTINGS["causal"], half=CleanHalfKD(temperature=2.0), it=Drafts())
    plain = manager_of(SETTINGS["causal"], kd=LogitsKD(temperature=2.0))
    half, alone = Tally(), Tally()
    weights = {"half": 1.0, "it": 1.0}
    manager.loss(student, clean, weights, manager.counts(clean, weights), taught, half)
    plain.loss(student, clean, {"kd": 1.0}, plain.counts(clean, {"kd": 1.0}), taught, alone)
    assert half.counts["half"] == alone.counts["kd"]
    torch.testing.assert_close(half.sums["half"], alone.sums["kd"], rtol=1e-5, atol=1e-4)


def test_a_clean_half_that_sees_the_token_is_no_teacher() -> None:
    for objective in (Drafts(), CleanHalfKD()):
        manager = manager_of(SETTINGS["fast_dllm"], it=objective)
        with pytest.raises(InputError, match="clean_half=causal"):
            manager.counts(documents(), {"it": 1.0})


def test_a_frozen_head_has_the_weights_and_no_gradient() -> None:
    head = nn.Linear(8, 11, bias=False)
    frozen, states = frozen_head(head, None), torch.randn(3, 8, requires_grad=True)
    torch.testing.assert_close(frozen(states), head(states))
    assert not frozen.weight.requires_grad and frozen_head(head, torch.bfloat16).weight.dtype == torch.bfloat16
