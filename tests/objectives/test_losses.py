"""Each objective's value and gradient against a plain version over the whole batch, written from the equation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from train_toys import targets_of, toy_batch, toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import HIDDEN, LOGITS, ForwardOutput, forward, qkv
from wrinklefree.objectives import OBJECTIVES, AttentionRelation, Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.base import Context, LogitObjective, Objective, StateObjective
from wrinklefree.objectives.layerwise import layer_weights
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term

EVERYTHING = frozenset({LOGITS, HIDDEN, qkv(-1), qkv(0)})
Naive = Callable[[ForwardOutput, ForwardOutput, TokenBatch], Tensor]


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def naive_next_token(smoothing: float) -> Naive:
    def loss(s: ForwardOutput, t: ForwardOutput, batch: TokenBatch) -> Tensor:
        mask, targets = targets_of(batch)
        log_q = s.logits[:, :-1][mask].log_softmax(-1)
        exact = -log_q[torch.arange(len(targets)), targets]
        return ((1 - smoothing) * exact - smoothing * log_q.mean(-1)).mean()

    return loss


def naive_kd(kind: str, tau: float, squared: bool, confidence: float | None) -> Naive:
    def loss(s: ForwardOutput, t: ForwardOutput, batch: TokenBatch) -> Tensor:
        mask, targets = targets_of(batch)
        p, q = ((x.logits[:, :-1][mask] / tau).softmax(-1) for x in (t, s))
        c = confidence
        if c is None:
            c = t.logits[:, :-1][mask].softmax(-1)[torch.arange(len(targets)), targets]
        value = {"forward": kl(p, q), "reverse": kl(q, p), "cakld": c * kl(q, p) + (1 - c) * kl(p, q)}[kind]
        return value.mean() * (tau**2 if squared else 1.0)

    return loss


def naive_layerwise(metric: str, weights: list[float]) -> Naive:
    def one(s: Tensor, t: Tensor, teacher: ForwardOutput) -> Tensor:
        if metric == "mse_normalized":
            return (s / s.norm(dim=-1, keepdim=True) - t / t.norm(dim=-1, keepdim=True)).square().sum(-1)
        if metric == "mse":
            return (s - t).square().mean(-1)
        if metric == "kl":
            return kl(*(teacher.head(teacher.norm(x)).softmax(-1) for x in (t, s)))
        cosine = (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1))
        return {"cosine": 1 - cosine, "inner_product": -cosine}[metric]

    def loss(s: ForwardOutput, t: ForwardOutput, batch: TokenBatch) -> Tensor:
        mask = batch.document_ids >= 0
        layers = zip(weights, s.hidden_states, t.hidden_states, strict=True)
        return sum((w * one(a, b, t)[mask].mean() for w, a, b in layers), torch.zeros(()))

    return loss


def naive_relation(form: str, layer: int, heads: int, alpha: tuple[float, ...], tau: float) -> Naive:
    def relations(x: Tensor) -> Tensor:  # [tokens, width] of one document
        per_head = []
        for a in x.split(x.shape[-1] // heads, dim=-1):
            if form == "cosine":
                a = a / a.norm(dim=-1, keepdim=True)
                per_head.append((a @ a.T / tau).softmax(-1))
            else:
                per_head.append((a @ a.T / math.sqrt(a.shape[-1])).softmax(-1))
        return torch.stack(per_head)

    def loss(s: ForwardOutput, t: ForwardOutput, batch: TokenBatch) -> Tensor:
        total, tokens = torch.zeros(()), 0
        for b in range(batch.input_ids.shape[0]):
            for document in range(int(batch.document_ids[b].max()) + 1):
                rows = batch.document_ids[b] == document
                tokens += int(rows.sum())
                for a, ours, theirs in zip(alpha, s.projections[layer], t.projections[layer], strict=True):
                    x, y = (z[b][rows] for z in (theirs, ours))
                    total = total + a * kl(relations(x), relations(y)).sum() / heads
        return total / tokens

    return loss


CASES: list[tuple[Objective, Naive]] = [
    (NextToken(), naive_next_token(0.0)),
    (NextToken(label_smoothing=0.1), naive_next_token(0.1)),
    (LogitsKD(), naive_kd("forward", 5.0, False, None)),
    (LogitsKD(temperature=2.0, temperature_squared=True), naive_kd("forward", 2.0, True, None)),
    (LogitsKD(divergence="reverse", temperature=1.0), naive_kd("reverse", 1.0, False, None)),
    (LogitsKD(divergence="cakld", temperature=2.0), naive_kd("cakld", 2.0, False, None)),
    (LogitsKD(divergence="cakld", temperature=2.0, confidence=0.3), naive_kd("cakld", 2.0, False, 0.3)),
    (Layerwise(), naive_layerwise("mse_normalized", [0.5, 0.5])),
    (Layerwise("cosine", "progressive"), naive_layerwise("cosine", [1 / 3, 2 / 3])),
    (Layerwise("mse", "exponential"), naive_layerwise("mse", [1 / 3, 2 / 3])),
    (Layerwise("mse", "progressive", temperature=4.0), naive_layerwise("mse", [1 / 12, 2 / 12])),
    (Layerwise("kl", (3.0, 1.0)), naive_layerwise("kl", [0.75, 0.25])),
    (Layerwise("inner_product"), naive_layerwise("inner_product", [0.5, 0.5])),
    (AttentionRelation(), naive_relation("scaled_dot", -1, 1, (1.0, 1.0, 1.0), 1.0)),
    (AttentionRelation(relation_heads=4, layer=0), naive_relation("scaled_dot", 0, 4, (1.0, 1.0, 1.0), 1.0)),
    (
        AttentionRelation("cosine", relation_heads=2, alpha=(1.0, 0.5, 0.0), temperature=0.2),
        naive_relation("cosine", -1, 2, (1.0, 0.5, 0.0), 0.2),
    ),
]  # fmt: skip


@pytest.mark.parametrize("tokens_per_chunk", [5, None])
@pytest.mark.parametrize(("objective", "naive"), CASES, ids=lambda x: getattr(x, "__qualname__", str(x)[:60]))
def test_value_and_gradient_match_the_equation(
    objective: Objective, naive: Naive, tokens_per_chunk: int | None
) -> None:
    student, teacher, batch = toy_model(1), toy_model(2).requires_grad_(False), toy_batch()
    manager = ObjectiveManager({"it": Term(objective)}, tokens_per_chunk=tokens_per_chunk)
    tally = Tally()
    with torch.no_grad():
        taught = forward(teacher, batch, EVERYTHING)
    loss = manager.loss(student, batch, {"it": 1.0}, manager.counts(batch, {"it": 1.0}), taught, tally)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    expected = naive(forward(student, batch, EVERYTHING), taught, batch)
    expected.backward()
    # Float32, a few hundred terms in another order: relative error of a few 1e-6; ten times that is allowed.
    torch.testing.assert_close(loss, expected, rtol=3e-5, atol=1e-6)
    for name, parameter in student.named_parameters():
        if parameter.grad is None or not parameter.grad.any():
            assert name not in ours or ours[name].abs().max() < 1e-6
            continue
        scale = parameter.grad.abs().max().item()
        torch.testing.assert_close(ours[name], parameter.grad, rtol=3e-5, atol=3e-5 * scale + 1e-8)


def test_every_objective_is_of_one_of_the_two_kinds() -> None:
    for name, kind in OBJECTIVES.items():
        objective = kind()
        assert isinstance(objective, LogitObjective) != isinstance(objective, StateObjective), name


@pytest.mark.parametrize(
    "objective",
    [LogitsKD(), LogitsKD("reverse"), Layerwise(), Layerwise("mse"), Layerwise("kl"), AttentionRelation()],
    ids=lambda o: str(o)[:40],
)
def test_a_student_equal_to_its_teacher_has_no_loss(objective: Objective) -> None:
    model, batch = toy_model(1), toy_batch()
    manager = ObjectiveManager({"it": Term(objective)})
    with torch.no_grad():
        taught = forward(model, batch, EVERYTHING)
    loss = manager.loss(model, batch, {"it": 1.0}, manager.counts(batch, {"it": 1.0}), taught, Tally())
    # Rounding of float32 exponentials, summed over 64 tokens of the vocabulary.
    assert abs(loss.item()) < 1e-5


def test_unpadded_and_repeated_batches_do_not_change_a_mean() -> None:
    student, teacher, batch = toy_model(1), toy_model(2), toy_batch()
    doubled = TokenBatch(
        *(torch.cat([x, x]) for x in (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids))
    )
    for objective in (NextToken(), LogitsKD(), Layerwise(), AttentionRelation()):
        manager = ObjectiveManager({"it": Term(objective)})
        values = []
        for seen in (batch, doubled):
            with torch.no_grad():
                taught = forward(teacher, seen, EVERYTHING)
                counts = manager.counts(seen, {"it": 1.0})
                values.append(float(manager.loss(student, seen, {"it": 1.0}, counts, taught, Tally())))
        assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_grouped_query_heads_are_not_repeated() -> None:
    """Repetition leaves cosines as they are, but scales A A^T / sqrt(d_r) by sqrt(repeats): another loss."""
    batch = toy_batch()
    with torch.no_grad():
        s, t = (forward(toy_model(seed), batch, EVERYTHING) for seed in (1, 2))
    assert s.projections[-1][0].shape[2] == 64 and s.projections[-1][1].shape[2] == 32

    def keys_only(form: str) -> float:
        relation = AttentionRelation(form, alpha=(0.0, 1.0, 0.0))  # type: ignore[arg-type]
        return float(relation.loss(Context(batch, s, t)).sum)

    own = {form: keys_only(form) for form in ("cosine", "scaled_dot")}
    for output in (s, t):
        q, k, v = output.projections[-1]
        output.projections[-1] = (q, k.unflatten(2, (2, 16)).repeat_interleave(2, dim=2).flatten(2), v)
    assert keys_only("cosine") == pytest.approx(own["cosine"], rel=1e-5)
    assert abs(keys_only("scaled_dot") / own["scaled_dot"] - 1.0) > 0.1


def test_layer_weights() -> None:
    assert layer_weights("uniform", 4) == [0.25] * 4
    assert layer_weights("progressive", 3) == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert layer_weights("exponential", 3) == pytest.approx([1 / 7, 2 / 7, 4 / 7])
    huge = layer_weights("exponential", 2000)
    assert sum(huge) == pytest.approx(1.0) and all(map(math.isfinite, huge))
    assert layer_weights((1.0, 3.0), 2) == [0.25, 0.75]
    for bad in ((1.0,), (-1.0, 2.0), (0.0, 0.0)):
        with pytest.raises(InputError, match="layer_weights"):
            layer_weights(bad, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layerwise("mse_normalised"), "did you mean 'mse_normalized'"),  # type: ignore[arg-type]
        (lambda: Layerwise(layer_weights="linear"), "allowed: exponential, progressive, uniform"),
        (lambda: LogitsKD("foward"), "did you mean 'forward'"),  # type: ignore[arg-type]
        (lambda: LogitsKD(temperature=0.0), "temperature: found 0.0"),
        (lambda: LogitsKD(confidence=0.5), "only divergence=cakld reads it"),
        (lambda: AttentionRelation("cos"), "attention_relation.form"),  # type: ignore[arg-type]
        (lambda: AttentionRelation(temperature=0.1), "only form=cosine reads it"),
        (lambda: NextToken(label_smoothing=1.0), "label_smoothing: found 1.0"),
    ],
)
def test_wrong_settings_are_input_errors(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_a_teacher_of_another_shape_is_refused_where_shapes_must_agree() -> None:
    batch, student, teacher = toy_batch(), toy_model(1), toy_model(2, num_hidden_layers=3)
    manager = ObjectiveManager({"layerwise": Term(Layerwise())})
    with torch.no_grad():
        taught = forward(teacher, batch, EVERYTHING)
    with pytest.raises(InputError, match="the student has 2 layers of 64, the teacher 3 of 64"):
        manager.loss(student, batch, {"layerwise": 1.0}, {"layerwise": 1, "next_token": 1}, taught, Tally())
