"""The head pass: written-out gradients equal autograd's, chunks equal no chunks, K classes equal a plain statement.

Tolerances: losses are sums of n V float32 products; each row is exact to a few units of 1e-7 of its largest term (a
logit, below 32 here), so 1e-5 a row. Gradients are differences of probabilities, exact to some 1e-7 of 1.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.objectives import LogitsKD, NextToken
from wrinklefree.objectives.base import Logits, Needs
from wrinklefree.objectives.head import HeadInputs, HeadTerm, head_pass
from wrinklefree.teachers.base import TopKRows

N, V = 12, 40


def pair(vocabulary: int = V, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (3.0 * torch.randn(N, vocabulary, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(vocabulary, (N,), generator=generator)


def rows(logits: Tensor, top_k: int) -> TopKRows:
    top = torch.log_softmax(logits, dim=-1).topk(top_k, dim=-1)
    return TopKRows(top.indices, top.values)


class ByAutograd:
    """The same objective without its written-out gradient."""

    needs = Needs()

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def count(self, batch: TokenBatch) -> int:
        return int(self.inner.count(batch))

    def chunk(self, student: Tensor, teacher: Any, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        result: tuple[Tensor, dict[str, Tensor]] = self.inner.chunk(student, teacher, targets)
        return result


def both_ways(objective: Any, student: Tensor, teacher: Any, targets: Tensor) -> None:
    leaf = student.clone().requires_grad_()
    value, metrics = objective.chunk(leaf, teacher, targets)
    (expected,) = torch.autograd.grad(0.7 * value, leaf)
    gradient = torch.full_like(student, 0.5)  # it adds
    given = Logits(teacher) if isinstance(teacher, Tensor) else teacher
    fast, fast_metrics = objective.block(Logits(student), given, targets, gradient, 0.7)
    scale = float(expected.abs().max().clamp_min(1.0))
    torch.testing.assert_close(fast, value.detach(), rtol=1e-5, atol=1e-5 * N)
    torch.testing.assert_close(gradient - 0.5, expected, rtol=1e-5, atol=2e-6 * scale)
    torch.testing.assert_close(dict(fast_metrics), dict(metrics), rtol=1e-5, atol=1e-5 * N)
    measured, _ = objective.block(Logits(student), given, targets, None, 0.0)
    assert torch.equal(measured, fast)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_by_hand_equals_autograd(smoothing: float) -> None:
    student, _, targets = pair()
    both_ways(NextToken(smoothing), student, None, targets)


DIVERGENCES = [("forward", None), ("reverse", None), ("cakld", None), ("cakld", 0.3)]


@pytest.mark.parametrize(("divergence", "confidence"), DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("top_k", [None, 1, 5, V - 1, V, V + 9])
@pytest.mark.parametrize("rest", ["bucket", "drop"])
def test_distillation_by_hand_equals_autograd(
    divergence: Any, confidence: float | None, temperature: float, top_k: int | None, rest: Any
) -> None:
    student, teacher, targets = pair()
    both_ways(LogitsKD(divergence, temperature, True, confidence, top_k, rest), student, teacher, targets)


@pytest.mark.parametrize(("divergence", "confidence"), DIVERGENCES)
@pytest.mark.parametrize(("rest", "temperature"), [("bucket", 1.0), ("drop", 1.0), ("drop", 3.0)])
def test_a_teacher_of_k_tokens_by_hand_equals_autograd(
    divergence: Any, confidence: float | None, rest: Any, temperature: float
) -> None:
    student, teacher, targets = pair()
    objective = LogitsKD(divergence, temperature, False, confidence, None, rest)
    both_ways(objective, student, rows(teacher, 7), targets)
    if confidence is not None or divergence != "cakld":
        # What it gives is what the logits would have given: the rest's mass is known at temperature 1.
        dense = LogitsKD(divergence, temperature, False, confidence, 7, rest).chunk(student, teacher, targets)[0]
        sparse = objective.chunk(student, rows(teacher, 7), targets)[0]
        torch.testing.assert_close(sparse, dense, rtol=1e-5, atol=1e-5 * N)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("top_k", [1, 4, V - 1, V])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_k_classes_and_a_rest_equal_a_plain_statement(divergence: Any, top_k: int, temperature: float) -> None:
    """Token by token, in double precision, with Python's own sums and logarithms."""
    student, teacher, targets = pair()
    expected = 0.0
    for s, t in zip(student.double() / temperature, teacher.double() / temperature, strict=True):
        p, q = t.softmax(0).tolist(), s.softmax(0).tolist()
        best = sorted(range(V), key=lambda v: -p[v])[:top_k]
        others = [v for v in range(V) if v not in best]
        classes = [(p[v], q[v]) for v in best]
        classes += [(math.fsum(p[v] for v in others), math.fsum(q[v] for v in others))] if others else []
        for a, b in classes:
            expected += a * math.log(a / b) if divergence == "forward" else b * math.log(b / a)
    value, _ = LogitsKD(divergence, temperature, top_k=top_k).chunk(student, teacher, targets)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    whole, _ = LogitsKD(divergence, temperature).chunk(student, teacher, targets)
    if top_k >= V - 1:
        torch.testing.assert_close(value, whole, rtol=1e-5, atol=1e-5)
    else:
        assert 0.0 < value < whole  # merging classes can only lose information


def test_a_rest_of_nothing_stays_finite() -> None:
    """The teacher is certain to the last bit; the student puts nearly nothing outside, or nearly everything."""
    teacher = torch.full((2, V), -60.0)
    teacher[:, 3] = 60.0
    student = torch.zeros(2, V)
    student[0, 3], student[1, 3] = 90.0, -90.0
    teachers: list[Any] = [Logits(teacher), rows(teacher, 2)]
    for divergence, given in itertools.product(("forward", "reverse"), teachers):
        gradient = torch.zeros_like(student)
        objective = LogitsKD(divergence, 1.0, top_k=2)  # type: ignore[arg-type]
        value, _ = objective.block(Logits(student), given, torch.tensor([3, 3]), gradient, 1.0)
        assert bool(value.isfinite()) and bool(gradient.isfinite().all())


def test_a_teacher_of_k_tokens_refuses_what_it_cannot_know() -> None:
    student, teacher, targets = pair()
    with pytest.raises(InputError, match="no known mass at a temperature other than 1"):
        LogitsKD(temperature=2.0).chunk(student, rows(teacher, 5), targets)
    with pytest.raises(InputError, match="found 6, the teacher gives 5 tokens"):
        LogitsKD(temperature=1.0, top_k=6).chunk(student, rows(teacher, 5), targets)
    wrongs: list[dict[str, Any]] = [{"top_k": 0}, {"rest": "bin"}]
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"logits_kd\.(top_k|rest)"):
            LogitsKD(**wrong)


def head_inputs(vocabulary: int, tokens: int, width: int = 8) -> HeadInputs:
    torch.manual_seed(0)
    heads = [nn.Linear(width, vocabulary, bias=False) for _ in range(2)]
    states = torch.randn(tokens, width, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    return HeadInputs(states, heads[0], targets, torch.randn(tokens, width), heads[1].requires_grad_(False))


def gradients(inputs: HeadInputs, terms: list[HeadTerm], tokens_per_chunk: int | None) -> list[Tensor]:
    inputs.states.grad = inputs.head.weight.grad = None
    total, _ = head_pass(inputs, terms, tokens_per_chunk)
    total.backward()
    assert inputs.states.grad is not None and inputs.head.weight.grad is not None
    return [total.detach(), inputs.states.grad, inputs.head.weight.grad]


def test_written_out_and_autograd_objectives_add_up_in_one_pass() -> None:
    inputs = head_inputs(V, 30)
    kd, ce = LogitsKD(temperature=2.0), NextToken()
    fast = [HeadTerm("kd", kd, 0.3), HeadTerm("ce", ce, 0.2)]
    mixed = [HeadTerm("kd", ByAutograd(kd), 0.3), HeadTerm("ce", ce, 0.2)]
    slow = [HeadTerm("kd", ByAutograd(kd), 0.3), HeadTerm("ce", ByAutograd(ce), 0.2)]
    expected = gradients(inputs, slow, 30)
    for terms in (fast, mixed):
        for found, wanted in zip(gradients(inputs, terms, 7), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


class Peak(TorchDispatchMode):
    """Follows the bytes of all living tensors that operations make, views counted once by their storage."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.alive.values()))
        return result


def test_150000_tokens_of_vocabulary_never_stand_as_two_full_logits() -> None:
    """Measured: bytes of living tensors during the pass. Unchunked, logits of both models would be 2 N V floats."""
    vocabulary, tokens = 150_000, 256
    inputs = head_inputs(vocabulary, tokens)
    terms = [HeadTerm("kd", LogitsKD(temperature=2.0), 1 / tokens), HeadTerm("ce", NextToken(), 1 / tokens)]
    full = 4 * tokens * vocabulary
    with Peak() as chunked:
        head_pass(inputs, terms)
    # Three arrays of a chunk (both logits and the gradient, 24 MB each), six of a block, and the head's gradient.
    assert chunked.largest <= 24 * 1024 * 1024 and chunked.peak < 90 * 1024 * 1024 < full
    with Peak() as whole:
        head_pass(inputs, terms, tokens)
    assert whole.peak > 3 * full  # the measure sees what it should
    expected = gradients(inputs, terms, tokens)
    for found, wanted in zip(gradients(inputs, terms, None), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
