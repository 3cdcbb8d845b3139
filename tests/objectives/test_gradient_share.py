"""Shares of the gradient: two terms of known ratio, compared with gradients taken apart; shares that are held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from train_toys import toy_batch, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.forward import ForwardOutput, forward, qkv
from wrinklefree.objectives import AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term

BATCH = toy_batch()


def teacher() -> ForwardOutput:
    with torch.no_grad():
        return forward(toy_model(2), BATCH, frozenset({"hidden", qkv(-1)}))


def one_step(manager: ObjectiveManager, student: nn.Module) -> tuple[dict[str, float], list[Tensor]]:
    """The figures of a step with the recipe's weights, and the gradients it leaves."""
    weights = manager.base_weights
    counts = {name: float(count) for name, count in manager.counts(BATCH, weights).items()}
    tally = Tally()
    student.zero_grad()
    for _ in range(2):  # micro-batches: only the first is measured
        manager.loss(student, BATCH, weights, {n: 2 * c for n, c in counts.items()}, teacher(), tally).backward()
    figures = manager.report(tally, {n: 2 * c for n, c in counts.items()}, weights)
    manager.end_step(tally, {n: 2 * c for n, c in counts.items()}, weights, lambda x: x)
    return figures, [p.grad.clone() for p in student.parameters() if p.grad is not None]


def size_of(term: Term, student: nn.Module) -> float:
    """The gradient of one term's mean at the embeddings, taken by hand on a model that starts from them."""
    embedded: list[Tensor] = []
    handle = student.get_submodule("model.embed_tokens").register_forward_hook(lambda m, i, o: embedded.append(o))
    manager = ObjectiveManager({"it": term}, monitor=())
    counts = {name: float(count) for name, count in manager.counts(BATCH, {"it": 1.0}).items()}
    loss = manager.loss(student, BATCH, {"it": 1.0}, counts, teacher(), Tally())
    handle.remove()
    return float(torch.autograd.grad(loss, embedded[0])[0].norm())


TERMS = {
    "next_token": Term(NextToken(), 1.0),
    "kd": Term(LogitsKD(temperature=2.0), 3.0),
    "layers": Term(Layerwise(), 0.5),
    "relation": Term(AttentionRelation("cosine", relation_heads=2), 20.0),
}


def test_every_terms_share_is_logged_when_due_and_changes_nothing() -> None:
    student = toy_model(1)
    manager = ObjectiveManager(TERMS, gradient_share_every=3)
    sizes = {name: term.weight * size_of(Term(term.objective), student) for name, term in TERMS.items()}
    figures, gradients = one_step(manager, student)
    for name, size in sizes.items():
        assert figures[f"{name}/gradient_share"] == pytest.approx(size / sum(sizes.values()), rel=1e-4)
    _, plain = one_step(ObjectiveManager(TERMS), student)
    assert all(torch.equal(a, b) for a, b in zip(gradients, plain, strict=True))
    later = ["kd/gradient_share" in one_step(manager, student)[0] for _ in range(4)]
    assert later == [False, False, True, False]
    restored = ObjectiveManager(TERMS, gradient_share_every=3)
    restored.load_state_dict(manager.state_dict())
    assert ["kd/gradient_share" in one_step(restored, student)[0] for _ in range(3)] == [False, True, False]


def test_twice_the_weight_is_twice_the_size() -> None:
    """The same loss three times, weights 1, 2 and 5: shares 1/8, 2/8 and 5/8."""
    terms = {name: Term(NextToken(), weight) for name, weight in (("next_token", 1.0), ("b", 2.0), ("c", 5.0))}
    figures, _ = one_step(ObjectiveManager(terms, gradient_share_every=1), toy_model(1))
    assert [figures[f"{n}/gradient_share"] for n in terms] == pytest.approx([0.125, 0.25, 0.625], rel=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_held_shares_are_reached_at_once(frozen: bool) -> None:
    student = toy_model(1, tie_word_embeddings=False)
    student.get_submodule("model.embed_tokens").requires_grad_(not frozen)
    terms = {
        "next_token": Term(NextToken(), 1.0),
        "kd": Term(LogitsKD(temperature=2.0), 1.0, Balance("share", 0.5, every=2)),
        "layers": Term(Layerwise(), 1.0, Balance("share", 0.2, every=2)),
    }
    manager = ObjectiveManager(terms, gradient_share_every=1)
    first, _ = one_step(manager, student)
    assert first["kd/weight"] == 0.0 and first["next_token/gradient_share"] == 1.0
    second, _ = one_step(manager, student)
    assert second["kd/gradient_share"] == pytest.approx(0.5, rel=1e-4)
    assert second["layers/gradient_share"] == pytest.approx(0.2, rel=1e-4)
    restored = ObjectiveManager(terms)
    restored.load_state_dict(manager.state_dict())
    assert restored.balance.factor("kd") == manager.balance.factor("kd") > 0.0


def test_shares_that_cannot_be_held_are_refused() -> None:
    with pytest.raises(InputError, match="a share must be below 1"):
        Balance("share", 1.0)
    halves = {name: Term(NextToken(), 1.0, Balance("share", 0.5)) for name in "ab"}
    with pytest.raises(InputError, match="add up to 1 or more"):
        ObjectiveManager(halves)
    with pytest.raises(InputError, match=r"kind=gradient: is measured at projections"):
        ObjectiveManager({"kd": Term(LogitsKD(), 1.0, Balance("gradient"))})
