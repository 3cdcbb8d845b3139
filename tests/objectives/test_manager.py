"""The manager: who sees which view, what weight 0 costs, one forward for each view, shares, balanced weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from train_toys import toy_batch, toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import HIDDEN, forward, qkv
from wrinklefree.objectives import AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.base import Needs
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term

WANT = frozenset({HIDDEN, qkv(-1)})


@dataclass
class Masked:
    """Cross-entropy on a view in which every second input is token 0."""

    inner: NextToken = field(default_factory=NextToken)
    needs = Needs(view="masked")

    def count(self, batch: TokenBatch) -> int:
        assert not batch.input_ids[:, ::2].any()
        return self.inner.count(batch)

    def chunk(self, student: Tensor, teacher: Tensor | None, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inner.chunk(student, teacher, targets)


class Prepared(list[TokenBatch]):
    """Makes that view, and notes of which batches."""

    def __call__(self, batch: TokenBatch) -> TokenBatch:
        ids = batch.input_ids.clone()
        ids[:, ::2] = 0
        self.append(batch)
        return dataclasses.replace(batch, input_ids=ids)


def one_loss(manager: ObjectiveManager, weights: dict[str, float], monitor: bool = False) -> tuple[Tensor, Tally, int]:
    """Loss, sums and number of student forwards for the toy batch."""
    student, teacher, batch, tally = toy_model(1), toy_model(2), toy_batch(), Tally()
    calls: list[None] = []
    student.get_submodule("model").register_forward_hook(lambda *_: calls.append(None))
    with torch.no_grad():
        taught = forward(teacher, batch, WANT)
    counts = manager.counts(batch, weights, monitor)
    return manager.loss(student, batch, weights, counts, taught, tally, monitor), tally, len(calls)


@pytest.mark.parametrize("weights", [{"next_token": 1.0, "masked": 0.0}, {"next_token": 1.0}])
def test_weight_zero_or_missing_prepares_nothing_and_leaves_the_loss_alone(weights: dict[str, float]) -> None:
    made = Prepared()
    terms = {"masked": Term(Masked()), "next_token": Term(NextToken())}
    manager = ObjectiveManager(terms, views={"masked": made})
    loss, tally, calls = one_loss(manager, weights)
    plain, _, _ = one_loss(ObjectiveManager({"next_token": Term(NextToken())}), {"next_token": 1.0})
    assert torch.equal(loss, plain)
    assert made == [] and "masked" not in tally.sums and calls == 1
    loss.backward()


def test_a_masked_view_never_reaches_another_objective() -> None:
    made = Prepared()
    terms = {"masked": Term(Masked()), "next_token": Term(NextToken()), "kd": Term(LogitsKD())}
    manager = ObjectiveManager(terms, views={"masked": made})
    _, tally, calls = one_loss(manager, {"masked": 1.0, "next_token": 1.0, "kd": 1.0})
    _, plain, _ = one_loss(manager, {"next_token": 1.0})
    assert calls == 2  # one for each view, not one for each objective
    assert torch.equal(tally.sums["next_token"], plain.sums["next_token"])
    assert tally.sums["masked"] > 1.1 * tally.sums["next_token"] or tally.sums["masked"] < tally.sums["next_token"]
    assert len(made) == 1 and torch.equal(made[0].input_ids, toy_batch().input_ids)  # once for count and loss
    with pytest.raises(InputError, match=r"objectives\.masked: nobody makes the 'masked' view"):
        ObjectiveManager(terms)


def test_all_weights_zero_is_a_clear_error_instead_of_a_broken_backward() -> None:
    manager = ObjectiveManager({"next_token": Term(NextToken())})
    with pytest.raises(InputError, match="every weight is 0"):
        one_loss(manager, {"next_token": 0.0})
    with pytest.raises(InputError, match=r"objectives\.next_token\.weight: found -1"):
        ObjectiveManager({"next_token": Term(NextToken(), -1.0)})


def test_cross_entropy_is_reported_beside_a_hidden_state_loss_without_touching_it() -> None:
    manager = ObjectiveManager({"layerwise": Term(Layerwise())})
    quiet, silent, _ = one_loss(manager, {"layerwise": 1.0}, monitor=False)
    loud, tally, calls = one_loss(manager, {"layerwise": 1.0}, monitor=True)
    assert torch.equal(quiet, loud) and "next_token" not in silent.sums and calls == 1
    batch = toy_batch()
    figures = manager.report(tally, manager.counts(batch, {"layerwise": 1.0}, True), {"layerwise": 1.0})
    expected = torch.nn.functional.cross_entropy(
        forward(toy_model(1), batch, frozenset({"logits"})).logits[:, :-1].flatten(0, 1),  # type: ignore[index]
        batch.labels[:, 1:].flatten(),
    )
    assert figures["next_token/ce"] == pytest.approx(expected.item(), rel=1e-5)
    assert figures["next_token/weight"] == 0.0 and figures["layerwise/share"] == 1.0


def test_report_gives_values_weights_and_shares_that_add_up() -> None:
    terms = {"next_token": Term(NextToken()), "kd": Term(LogitsKD()), "layerwise": Term(Layerwise())}
    manager, batch = ObjectiveManager(terms), toy_batch()
    weights = {"next_token": 0.5, "kd": 2.0, "layerwise": 1e-4}
    loss, tally, calls = one_loss(manager, weights)
    figures = manager.report(tally, manager.counts(batch, weights), weights)
    assert calls == 1
    assert figures["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert sum(figures[f"{name}/share"] for name in terms) == pytest.approx(1.0)
    assert figures["loss"] == pytest.approx(sum(weights[n] * figures[f"{n}/value"] for n in terms), rel=1e-6)
    assert figures["layerwise/share"] < 0.01


def test_the_head_never_sees_more_than_a_chunk_and_runs_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of the whole batch would be the largest tensor of a step."""
    student, teacher, batch = toy_model(1), toy_model(2), toy_batch()
    rows: list[int] = []
    teacher.get_submodule("lm_head").register_forward_pre_hook(lambda m, inputs: rows.append(inputs[0].shape[0]))
    sizes: list[int] = []
    original = torch.nn.functional.linear

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight is student.get_submodule("lm_head").weight:
            sizes.append(x.shape[0])
        return original(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    terms = {"next_token": Term(NextToken()), "kd": Term(LogitsKD()), "reverse": Term(LogitsKD("reverse"))}
    manager, weights = ObjectiveManager(terms, tokens_per_chunk=7), dict.fromkeys(terms, 1.0)
    with torch.no_grad():
        taught = forward(teacher, batch)
    manager.loss(student, batch, weights, manager.counts(batch, weights), taught, Tally()).backward()
    assert sizes == rows == [7, 7, 7, 7, 2]  # 30 predicted tokens, each once


@pytest.mark.parametrize("frozen_head", [False, True])
def test_mixed_precision_changes_the_products_but_not_the_losses(frozen_head: bool) -> None:
    """Under bfloat16 autocast every loss is float32, near the exact one, and gradients point the same way."""
    batch, teacher = toy_batch(), toy_model(2)
    terms = {"kd": Term(LogitsKD()), "kl": Term(Layerwise("kl")), "relation": Term(AttentionRelation(), 0.1)}
    manager, weights = ObjectiveManager(terms), {"kd": 1.0, "kl": 1.0, "relation": 0.1}
    with torch.no_grad():
        taught = forward(teacher, batch, WANT)
    found: dict[bool, tuple[Tensor, Tensor]] = {}
    for mixed in (False, True):
        student = toy_model(1)
        student.get_submodule("lm_head").requires_grad_(not frozen_head)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = manager.loss(student, batch, weights, manager.counts(batch, weights), taught, Tally())
        loss.backward()
        gradients = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        found[mixed] = (loss.detach(), torch.cat(gradients))
    assert found[True][0].dtype == torch.float32 and not torch.equal(found[True][0], found[False][0])
    # bfloat16 carries 8 bits: products of a two-layer model agree to about a percent.
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0.03, atol=0.0)
    assert torch.nn.functional.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.99


@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_a_balanced_weight_reaches_its_target(kind: str) -> None:
    balance = Balance(kind, target=0.35, every=10)  # type: ignore[arg-type]
    terms = {"kd": Term(LogitsKD()), "relation": Term(AttentionRelation("cosine", relation_heads=2), balance=balance)}
    manager, batch, weights = ObjectiveManager(terms), toy_batch(), {"kd": 1.0, "relation": 1.0}
    counts = manager.counts(batch, weights)
    assert manager.balance.factor("relation") == 0.0  # the first step only measures
    _, tally, _ = one_loss(manager, weights)
    manager.end_step(tally, counts, weights, lambda x: x)
    factor = manager.balance.factor("relation")
    assert factor > 0.0

    restored = ObjectiveManager(terms)
    restored.load_state_dict(manager.state_dict())
    assert restored.balance.factor("relation") == factor

    student, teacher = toy_model(1), toy_model(2)
    with torch.no_grad():
        taught = forward(teacher, batch, WANT)

    def part(name: str) -> Tensor:
        return manager.loss(student, batch, {name: 1.0}, counts, taught, Tally())

    if kind == "loss":
        ratio = (part("relation") / part("kd")).item()
    else:
        # At the outputs of the last layer's projections, found here by hooks of the test's own.
        sizes = {}
        for name in ("relation", "kd"):
            kept: list[Tensor] = []
            hooks = [
                student.get_submodule(f"model.layers.1.self_attn.{p}_proj").register_forward_hook(
                    lambda m, i, o, kept=kept: kept.append(o)
                )
                for p in "qkv"
            ]
            gradients = torch.autograd.grad(part(name), kept)
            sizes[name] = torch.cat([g.flatten() for g in gradients]).norm()
            for hook in hooks:
                hook.remove()
        ratio = (sizes["relation"] / sizes["kd"]).item()
    assert ratio == pytest.approx(0.35, rel=1e-4)


def test_accumulation_does_not_change_a_balanced_weight() -> None:
    """A step of one micro-batch, and of four of the same tokens: the same ratio of gradients, the same factor."""
    student, teacher, batch = toy_model(1, ternary=True), toy_model(2), toy_batch()
    factors = []
    for micro_batches in (1, 4):
        balance = Balance("gradient", target=0.35, every=10)
        terms = {
            "kd": Term(LogitsKD()),
            "relation": Term(AttentionRelation("cosine", relation_heads=2), balance=balance),
        }
        manager, tally = ObjectiveManager(terms), Tally()
        weights = manager.base_weights
        taught = forward(teacher, batch, manager.teacher_wants(weights))
        counts = {name: micro_batches * count for name, count in manager.counts(batch, weights).items()}
        for _ in range(micro_batches):
            manager.loss(student, batch, weights, counts, taught, tally)
        manager.end_step(tally, counts, weights, lambda x: x)
        factors.append(manager.balance.factor("relation"))
    assert factors[0] > 0.0 and factors[1] == pytest.approx(factors[0], rel=1e-6)


def test_balance_settings_are_checked() -> None:
    with pytest.raises(InputError, match="did you mean 'gradient'"):
        Balance("gradiant")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="target must be above 0"):
        Balance(target=0.0)
