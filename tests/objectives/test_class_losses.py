"""Class losses against plain torch and plain loops; the manager with a teacher; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_toys import pack, random_documents, toy_model

from wrinklefree.data.supervised import ClassBatch
from wrinklefree.errors import InputError
from wrinklefree.models.classification import as_classifier, classify
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.objectives.attention_relation import AttentionRelation
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.base import Context
from wrinklefree.objectives.classification import Classification, ClassKD
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.quant.ternary import TernarySpec

LENGTHS = (9, 3, 14, 1)
TARGETS = {
    "single": torch.tensor([0, 2, 1, 2]),
    "multi": torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]),
    "number": torch.tensor([0.3, -1.0, 2.0, 0.0]),
}


def batch_of(classes: Tensor) -> ClassBatch:
    packed = pack([[row] for row in random_documents(list(LENGTHS))], 16)
    values = {name: getattr(packed, name) for name in ("input_ids", "position_ids", "document_ids")}
    return ClassBatch(**values, labels=torch.full_like(packed.labels, -100), classes=classes)


def model_of(seed: int, classes: int = 3, ternary: bool = False) -> Any:
    torch.manual_seed(seed)
    names = tuple(f"class {i}" for i in range(classes))
    model = as_classifier(toy_model(seed), names, pad_id=0)  # type: ignore[arg-type]
    torch.nn.init.normal_(model.score.weight, std=1.0)
    if ternary:
        convert_model(model, TernarySpec())
    return model


def logits_of(model: Any) -> Tensor:
    rows = random_documents(list(LENGTHS))
    return torch.stack([classify(model, torch.tensor([row]))[0] for row in rows])


@pytest.mark.parametrize(("kind", "classes"), [("single", 3), ("multi", 3), ("number", 1)])
def test_from_labels_it_is_torchs_own_loss_times_the_batch(kind: str, classes: int) -> None:
    model, targets = model_of(1, classes), TARGETS[kind]
    batch = batch_of(targets)
    result = Classification().loss(Context(batch, forward(model, batch)))
    logits = logits_of(model)
    plain = {
        "single": lambda: F.cross_entropy(logits, targets),
        "multi": lambda: F.binary_cross_entropy_with_logits(logits, targets),
        "number": lambda: F.mse_loss(logits[:, 0], targets),
    }[kind]()
    assert result.count == 4 == Classification().count(batch)
    torch.testing.assert_close(result.sum / 4, plain, rtol=1e-4, atol=1e-5)
    if kind == "single":
        assert float(result.metrics["accuracy"]) == (logits.argmax(1) == targets).sum().item()
    if kind == "multi":
        assert float(result.metrics["accuracy"]) == pytest.approx(float(((logits > 0) == targets.bool()).sum()) / 3)


@pytest.mark.parametrize("temperature", [1.0, 5.0])
@pytest.mark.parametrize(("kind", "classes"), [("single", 3), ("multi", 3), ("number", 1)])
def test_from_a_teacher_it_is_the_divergence_written_out(kind: str, classes: int, temperature: float) -> None:
    student, teacher = model_of(1, classes), model_of(2, classes)
    batch = batch_of(TARGETS[kind])
    with torch.no_grad():
        taught = forward(teacher, batch)
    result = ClassKD(temperature).loss(Context(batch, forward(student, batch), taught))
    s, t = (logits_of(model).detach().double() / temperature for model in (student, teacher))
    total = 0.0
    for row in range(4):
        if kind == "single":
            p, q = t[row].softmax(0), s[row].softmax(0)
            total += sum(float(p[c] * (p[c] / q[c]).log()) for c in range(3))
        elif kind == "multi":
            for c in range(3):
                p, q = t[row, c].sigmoid(), s[row, c].sigmoid()
                total += float(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) / 3
        else:
            total += float((s[row, 0] - t[row, 0]) ** 2) * temperature**2
    assert result.sum.item() == pytest.approx(total, rel=1e-3)


def test_a_teacher_that_is_the_student_teaches_nothing_and_gradients_are_the_students_alone() -> None:
    student = model_of(1)
    batch = batch_of(TARGETS["single"])
    output = forward(student, batch)
    assert ClassKD().loss(Context(batch, output, output)).sum.item() == pytest.approx(0.0, abs=1e-5)
    teacher = model_of(2)
    teacher.requires_grad_(False)
    ClassKD().loss(Context(batch, forward(student, batch), forward(teacher, batch))).sum.backward()
    assert student.score.weight.grad is not None and teacher.score.weight.grad is None


def test_labels_teacher_and_attention_relations_add_up_and_micro_batches_change_nothing() -> None:
    student, teacher = model_of(1, ternary=True), model_of(2)
    batch = batch_of(TARGETS["single"])
    terms = {
        "classification": Term(Classification()),
        "class_kd": Term(ClassKD(), 10.0),
        "attention_relation": Term(AttentionRelation(form="cosine"), 1.0, Balance("gradient", 0.35)),
    }
    manager = ObjectiveManager(terms, monitor=("classification",))
    weights = manager.base_weights
    counts: dict[str, float] = dict(manager.counts(batch, weights))
    assert counts == {"classification": 4, "class_kd": 4, "attention_relation": sum(LENGTHS)}
    with torch.no_grad():
        taught = forward(teacher, batch, manager.teacher_wants(weights))
    whole = manager.loss(student, batch, weights, counts, taught, Tally())
    manager.balance.commit(lambda x: x)
    assert manager.balance.factor("attention_relation") not in (0.0, 1.0)
    whole = manager.loss(student, batch, weights, counts, taught, Tally())
    parts = torch.zeros(())
    for start in (0, 2):
        part = batch.rows(start, start + 2)
        with torch.no_grad():
            taught = forward(teacher, part, manager.teacher_wants(weights))
        parts = parts + manager.loss(student, part, weights, counts, taught, Tally())
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)
    figures = manager.report(Tally(), counts, weights)
    assert figures["loss"] == 0


def test_what_does_not_fit_is_an_input_error() -> None:
    batch = pack([random_documents([9])], 16)
    with pytest.raises(InputError, match="needs labelled examples"):
        Classification().loss(Context(batch, forward(model_of(1), batch)))
    labelled = batch_of(TARGETS["single"])
    with pytest.raises(InputError, match="the teacher has 2 classes, the student 3"):
        ClassKD().loss(Context(labelled, forward(model_of(1), labelled), forward(model_of(2, 2), labelled)))
    with pytest.raises(InputError, match="must be above 0"):
        ClassKD(temperature=0.0)
    with pytest.raises(InputError, match="allowed is 0 to below 1"):
        Classification(label_smoothing=1.0)
