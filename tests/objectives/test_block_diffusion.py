"""Losses on masked tokens against plain versions over whole logits; trap T4; alignment of teacher and student."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from test_noise import MASK, SETTINGS, documents
from torch import Tensor, nn
from torch.nn import functional as F
from train_toys import VOCABULARY, ToyStream, pack, toy_model

from wrinklefree.data.batch import IGNORE_INDEX, TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import LOGITS, ForwardOutput, forward, qkv
from wrinklefree.objectives import TCS, BlockAttention, BlockDiffusion, CleanHalf, NextToken
from wrinklefree.objectives.balance import Balance
from wrinklefree.objectives.base import Objective
from wrinklefree.objectives.curriculum import Curriculum, Phase
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.objectives.noise import NOISED_VIEW, Diffusion, NoisedBatch, noised, noised_view
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position
from wrinklefree.train.session import LoopConfig

EVERYTHING = frozenset({LOGITS, qkv(-1)})


def manager_of(settings: Diffusion, tokens_per_chunk: int | None = None, **objectives: Objective) -> ObjectiveManager:
    terms = {name: Term(objective) for name, objective in objectives.items()}
    views = {NOISED_VIEW: noised_view(settings, MASK, 0)}
    return ObjectiveManager(terms, monitor=(), tokens_per_chunk=tokens_per_chunk, views=views, banned=MASK)


def without_mask(logits: Tensor) -> Tensor:
    return torch.cat([logits[..., :MASK], logits[..., MASK + 1 :]], dim=-1)


def in_order_of_tokens(view: NoisedBatch) -> list[tuple[int, int]]:
    """The masked slots, (row, slot), by row and then by the token they hold, as `Rows` has them."""
    slots = [(int(r), int(s)) for r, s in torch.nonzero(view.labels != IGNORE_INDEX)]
    return sorted(slots, key=lambda x: (x[0], int(view.slots[x])))


def predicting_state(view: NoisedBatch, settings: Diffusion, row: int, slot: int) -> int:
    if not settings.shift:
        return slot
    if settings.block_size is None or int(view.position_ids[row, slot]) % settings.block_size:
        return slot - 1
    return view.slots.shape[1] + int(view.slots[row, slot]) % 24 - 1


Naive = Callable[[ForwardOutput, ForwardOutput, TokenBatch, NoisedBatch, Diffusion], Tensor]


def naive_diffusion(s: ForwardOutput, t: ForwardOutput, clean: TokenBatch, view: NoisedBatch, it: Diffusion) -> Tensor:
    total = torch.zeros(())
    weights = view.selection().weights
    assert s.logits is not None
    for k, (row, slot) in enumerate(in_order_of_tokens(view)):
        log_q = without_mask(s.logits[row, predicting_state(view, it, row, slot)]).log_softmax(-1)
        total = total - (1.0 if weights is None else weights[k]) * log_q[view.labels[row, slot]]
    return total / view.counted


def naive_tcs(objective: TCS) -> Naive:
    def loss(s: ForwardOutput, t: ForwardOutput, clean: TokenBatch, view: NoisedBatch, it: Diffusion) -> Tensor:
        total, tau = torch.zeros(()), objective.temperature
        assert s.logits is not None and t.logits is not None
        weights = view.selection().weights
        for k, (row, slot) in enumerate(in_order_of_tokens(view)):
            token = int(view.slots[row, slot])
            q = (without_mask(s.logits[row, predicting_state(view, it, row, slot)]) / tau).softmax(-1)
            p = (without_mask(t.logits.flatten(0, 1)[token - 1]) / tau).softmax(-1)  # the state before the token
            top = p.argsort(descending=True)[: objective.top_k]
            a, b = p[top], q[top]
            if objective.rest == "bucket" and len(top) < len(p):
                a, b = torch.cat([a, 1 - a.sum()[None]]), torch.cat([b, 1 - b.sum()[None]])
            else:
                a, b = a / a.sum(), b / b.sum()
            total = total + (1.0 if weights is None else weights[k]) * (a * (a / b).log()).sum()
        return total * (tau**2 if objective.temperature_squared else 1.0) / view.counted

    return loss


def naive_blocks(s: ForwardOutput, t: ForwardOutput, clean: TokenBatch, view: NoisedBatch, it: Diffusion) -> Tensor:
    """Cosine relations with one head, inside each block."""
    total, count = torch.zeros(()), 0
    groups: dict[tuple[int, int, int], list[int]] = {}
    for row, slot in torch.nonzero(view.slots >= 0).tolist():
        if it.shift or view.position_ids[row, slot] > 0:
            place = (row, int(view.document_ids[row, slot]), int(view.block_ids[row, slot]))
            groups.setdefault(place, []).append(slot)
            count += 1
    for (row, _, _), slots in groups.items():
        tokens = view.slots[row, slots] - (0 if it.shift else 1)
        for ours, theirs in zip(s.projections[-1], t.projections[-1], strict=True):
            a, b = F.normalize(ours[row, slots], dim=-1), F.normalize(theirs.flatten(0, 1)[tokens], dim=-1)
            q, p = (a @ a.T).softmax(-1), (b @ b.T).softmax(-1)
            total = total + (p * (p / q).log()).sum()
    return total / count


CASES: list[tuple[str, Objective, Naive]] = [
    *((name, BlockDiffusion(), naive_diffusion) for name in SETTINGS),
    ("fast_dllm", TCS(top_k=7), naive_tcs(TCS(top_k=7))),
    ("no shift", TCS(top_k=7, temperature=2.0), naive_tcs(TCS(top_k=7, temperature=2.0))),
    ("causal", TCS(top_k=500, temperature_squared=False), naive_tcs(TCS(top_k=500, temperature_squared=False))),
    ("fast_dllm", TCS(top_k=5, rest="drop"), naive_tcs(TCS(top_k=5, rest="drop"))),
    ("llada in blocks", TCS(top_k=9), naive_tcs(TCS(top_k=9))),
    ("fast_dllm", BlockAttention("cosine"), naive_blocks),
    ("no shift", BlockAttention("cosine"), naive_blocks),
    ("causal clean half", BlockAttention("cosine"), naive_blocks),
]


@pytest.mark.parametrize("tokens_per_chunk", [7, None])
@pytest.mark.parametrize(("name", "objective", "naive"), CASES, ids=lambda x: getattr(x, "__qualname__", str(x)[:50]))
def test_value_and_gradient_match_a_loop_over_masked_tokens(
    name: str, objective: Objective, naive: Naive, tokens_per_chunk: int | None
) -> None:
    student, teacher, clean, settings = toy_model(1), toy_model(2), documents(), SETTINGS[name]
    manager, weights = manager_of(settings, tokens_per_chunk, it=objective), {"it": 1.0}
    with torch.no_grad():
        taught = forward(teacher, clean, EVERYTHING)
    loss = manager.loss(student, clean, weights, manager.counts(clean, weights), taught, Tally())
    loss.backward()
    ours = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()
    view = noised(clean, settings, MASK, 0)
    expected = naive(forward(student, view, EVERYTHING), taught, clean, view, settings)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for n, parameter in student.named_parameters():
        if parameter.grad is not None and parameter.grad.any():
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(ours[n], parameter.grad, rtol=1e-3, atol=2e-4 * scale + 1e-8)


@pytest.mark.parametrize("name", ["fast_dllm", "no shift"])
def test_teacher_and_student_predict_the_same_token(name: str) -> None:
    """A teacher that always puts the true next token first agrees with the targets; one place off, it would not.

    Shifted and unshifted students alike: the teacher's state before the token, wherever the student's is.
    """
    clean, settings = documents(), SETTINGS[name]
    rows = noised(clean, settings, MASK, 0).selection()
    oracle = F.one_hot(F.pad(clean.input_ids[:, 1:], (0, 1)), VOCABULARY).float() * 50
    assert rows.teacher is not None
    assert torch.equal(oracle.flatten(0, 1)[rows.teacher].argmax(-1), rows.targets)
    assert (oracle.flatten(0, 1)[rows.teacher + 1].argmax(-1) != rows.targets).float().mean() > 0.8
    tcs = TCS(top_k=3)
    teacher = oracle.flatten(0, 1)[rows.teacher]
    right = F.one_hot(rows.targets, VOCABULARY).float() * 50
    assert tcs.chunk(right, teacher, rows.targets)[0] < 1e-3
    assert tcs.chunk(right.roll(1, dims=0), teacher, rows.targets)[0] > 100


def test_where_student_and_teacher_see_the_same_the_divergence_is_0() -> None:
    """With a causal clean half, a block's first token is predicted from exactly the text that the teacher reads."""
    model, clean, settings = toy_model(1), documents(), SETTINGS["causal clean half"]
    view = noised(clean, settings, MASK, 0)
    rows = view.selection()
    with torch.no_grad():
        s = forward(model, view, EVERYTHING).logits.flatten(0, 1)[rows.states]  # type: ignore[union-attr]
        t = forward(model, clean, EVERYTHING).logits.flatten(0, 1)[rows.teacher]  # type: ignore[union-attr]
    first = clean.position_ids.flatten()[rows.teacher + 1] % 4 == 0  # type: ignore[operator]
    tcs = TCS(top_k=10, temperature=1.0)
    divergence = torch.stack([tcs.chunk(s[i : i + 1], t[i : i + 1], rows.targets[i : i + 1])[0] for i in range(len(s))])
    assert first.any() and (~first).any()
    assert divergence[first].abs().max() < 1e-5 < 1e-2 < divergence[~first].mean()


def test_the_rest_bucket_keeps_what_renormalisation_loses() -> None:
    teacher = torch.log(torch.tensor([[0.6, 0.2, 0.1, 0.1]]))
    wrong = torch.log(torch.tensor([[0.06, 0.02, 0.46, 0.46]]))  # the same ratio among the first two
    target = torch.tensor([0])
    assert TCS(top_k=2, temperature=1.0, rest="drop").chunk(wrong, teacher, target)[0].abs() < 1e-6
    expected = 0.6 * torch.tensor(10.0).log() + 0.2 * torch.tensor(10.0).log() + 0.2 * torch.tensor(0.2 / 0.92).log()
    torch.testing.assert_close(TCS(top_k=2, temperature=1.0).chunk(wrong, teacher, target)[0], expected)
    with pytest.raises(InputError, match=r"tcs\.top_k: found 0, it must be at least 1"):
        TCS(top_k=0)


def test_the_mask_has_no_probability_and_its_output_row_no_gradient() -> None:
    """The head's row of MASK is raised far above all others: nothing changes, for any objective, and it stays there."""
    losses = []
    for raised in (0.0, 100.0):
        student = toy_model(1, tie_word_embeddings=False)
        head: Tensor = student.get_submodule("lm_head").weight  # type: ignore[assignment]
        with torch.no_grad():
            head[MASK] += raised
        manager = manager_of(SETTINGS["fast_dllm"], ce=NextToken(), dlm=BlockDiffusion(), kd=TCS(top_k=500))
        weights = {"ce": 1.0, "dlm": 1.0, "kd": 1.0}
        with torch.no_grad():
            taught = forward(student, documents())
        loss = manager.loss(student, documents(), weights, manager.counts(documents(), weights), taught, Tally())
        loss.backward()
        assert head.grad is not None and not head.grad[MASK].any() and head.grad.any() and torch.isfinite(loss)
        losses.append(loss.detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)


def test_one_batch_equals_two_halves_with_their_own_masks() -> None:
    """Masks go with the sequence: accumulation, or another number of processes, gives the same gradient."""
    gradients = []
    for parts in ([(0, 3)], [(0, 1), (1, 3)]):
        student, clean = toy_model(1), documents()
        manager, weights = manager_of(SETTINGS["fast_dllm"], it=BlockDiffusion()), {"it": 1.0}
        batches = [clean.rows(*part) for part in parts]
        counts = {"it": float(sum(manager.counts(batch, weights)["it"] for batch in batches))}
        for batch in batches:
            manager.loss(student, batch, weights, counts, None, Tally()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def curriculum() -> Curriculum:
    phases = [Phase("plain", 0.2, {"dlm": 0.0}), Phase("ramp", 1.0, {"dlm": 0.5})]
    return Curriculum({"ce": 1.0, "dlm": 1.0}, phases, "linear")


def test_t4_at_weight_0_the_batch_is_untouched_and_at_step_50_it_is_masked_and_doubled() -> None:
    """Phases (0.2: 0) and (1.0: 0.5), linear, 100 steps: weight 0 through step 20, 0.1875 at step 50."""
    clean, seen = documents(), []
    manager = manager_of(SETTINGS["fast_dllm"], ce=NextToken(), dlm=BlockDiffusion())
    plain = manager_of(SETTINGS["fast_dllm"], ce=NextToken())
    before = [getattr(clean, name).clone() for name in ("input_ids", "labels", "position_ids", "document_ids")]
    student = toy_model(1)
    student.get_submodule("model.embed_tokens").register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    for step, expected in ((0, 0.0), (20, 0.0), (50, 0.1875)):
        weights = curriculum().at(step / 100).weights
        assert weights["dlm"] == pytest.approx(expected, abs=1e-12) and weights["ce"] == 1.0
        seen.clear()
        tally = Tally()
        counts = manager.counts(clean, weights)
        loss = manager.loss(student, clean, weights, counts, None, tally)
        after = [getattr(clean, name) for name in ("input_ids", "labels", "position_ids", "document_ids")]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        single = Tally()
        alone = plain.loss(student, clean, {"ce": 1.0}, plain.counts(clean, {"ce": 1.0}), None, single)
        assert torch.equal(tally.sums["ce"], single.sums["ce"])  # the cross-entropy is the plain one, exactly
        if expected == 0.0:
            assert [ids.shape for ids in seen] == [clean.input_ids.shape] * 2  # one forward each, not doubled
            assert not (seen[0] == MASK).any() and "dlm" not in tally.sums and "dlm" not in counts
            assert torch.equal(loss, alone)
        else:
            clean_ids, noised_ids, _ = seen
            assert torch.equal(clean_ids, clean.input_ids) and not (clean_ids == MASK).any()
            assert noised_ids.shape[0] == 2 * clean.num_sequences and noised_ids.shape[1] >= 2 * 24
            assert (noised_ids == MASK).sum() > 0 and tally.metrics["dlm"]["masked"] == counts["dlm"] > 0
            expected_loss = alone.detach() + 0.1875 * tally.sums["dlm"] / counts["dlm"]
            torch.testing.assert_close(loss.detach(), expected_loss)


def test_t4_in_the_loop_tokens_are_those_of_the_clean_batch() -> None:
    """A run of 100 steps: counters and steps are those of a run without diffusion."""
    figures: dict[str, list[dict[str, float]]] = {}
    for kind in ("plain", "diffusion"):
        student = toy_model(1)
        manager = manager_of(SETTINGS["fast_dllm"], ce=NextToken(), dlm=BlockDiffusion())
        seen: list[dict[str, float]] = []

        def keep(position: Position, values: Mapping[str, float], seen: list[dict[str, float]] = seen) -> None:
            seen.append(dict(values))

        run(
            student, ToyStream(), build_optimizer(student, OptimizerConfig(lr=1e-3)), manager,
            config=LoopConfig(micro_batch=1), budget=Budget(tokens=100 * 24),
            curriculum=curriculum() if kind == "diffusion" else Curriculum({"ce": 1.0, "dlm": 0.0}), on_step=keep,
        )  # fmt: skip
        figures[kind] = seen
    a, b = figures["plain"], figures["diffusion"]
    assert len(a) == len(b) == 100 and [f["tokens"] for f in a] == [f["tokens"] for f in b]
    assert [f["loss"] for f in a[:21]] == [f["loss"] for f in b[:21]]  # weight 0 until then leaves no trace
    assert b[50]["dlm/weight"] == pytest.approx(0.1875) and "dlm/weight" not in b[20]
    assert b[50]["dlm/masked"] == 1.0 and 0 < b[50]["dlm/share"] < 1


def test_clean_half_is_the_next_token_loss_without_a_forward_of_its_own() -> None:
    clean, calls = documents(), []
    student: nn.Module = toy_model(1)
    student.get_submodule("model").register_forward_hook(lambda *_: calls.append(None))
    manager = manager_of(SETTINGS["causal"], dlm=BlockDiffusion(), half=CleanHalf())
    weights, tally = {"dlm": 1.0, "half": 1.0}, Tally()
    counts = manager.counts(clean, weights)
    manager.loss(student, clean, weights, counts, None, tally).backward()
    assert len(calls) == 1
    plain = manager_of(SETTINGS["causal"], ce=NextToken())
    alone = Tally()
    plain.loss(student, clean, {"ce": 1.0}, plain.counts(clean, {"ce": 1.0}), None, alone)
    assert counts["half"] == plain.counts(clean, {"ce": 1.0})["ce"]
    torch.testing.assert_close(tally.sums["half"], alone.sums["ce"], rtol=1e-5, atol=1e-4)
    with pytest.raises(InputError, match="clean_half=causal"):
        wrong = manager_of(SETTINGS["fast_dllm"], half=CleanHalf())
        wrong.counts(clean, {"half": 1.0})


def test_the_clean_half_can_be_balanced_to_the_loss_of_the_masked_tokens() -> None:
    """I-DLM's weight L_mask / L_clean, from one step to the next; the first step only measures."""
    clean, student = documents(), toy_model(1)
    terms = {"dlm": Term(BlockDiffusion()), "half": Term(CleanHalf(), 1.0, Balance("loss", 1.0, every=1))}
    views = {NOISED_VIEW: noised_view(SETTINGS["causal"], MASK, 0)}
    manager = ObjectiveManager(terms, monitor=(), views=views, banned=MASK)
    weights = {"dlm": 1.0, "half": 1.0}
    shares = []
    for _ in range(2):
        tally, counts = Tally(), manager.counts(clean, weights)
        manager.loss(student, clean, weights, counts, None, tally)
        shares.append(manager.report(tally, counts, weights)["half/share"])
        manager.end_step(tally, counts, weights, lambda value: value)
    assert shares == [0.0, pytest.approx(0.5)]


def test_what_is_only_measured_keeps_no_graph_and_changes_nothing() -> None:
    """The cross-entropy that is logged beside diffusion needs a forward of the clean batch, but no backward of it."""
    clean, gradients, kept = documents(), [], []
    for monitor in (False, True):
        student = toy_model(1)
        views = {NOISED_VIEW: noised_view(SETTINGS["fast_dllm"], MASK, 0)}
        manager = ObjectiveManager({"dlm": Term(BlockDiffusion())}, views=views, banned=MASK)
        weights, tally, saved = {"dlm": 1.0}, Tally(), []

        def keep(tensor: Tensor, saved: list[int] = saved) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        counts = manager.counts(clean, weights, monitor)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = manager.loss(student, clean, weights, counts, None, tally, monitor)
        loss.backward()
        assert ("next_token" in tally.sums) == monitor
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
        kept.append(sum(saved))
    assert torch.equal(*gradients) and kept[0] == kept[1] > 0


@pytest.mark.parametrize("name", SETTINGS)
def test_a_batch_with_nothing_to_predict_reports_every_name_and_adds_nothing(name: str) -> None:
    """Processes sum their figures name by name: one that lacks a name would leave the others waiting."""
    student, teacher, clean = toy_model(1), toy_model(2), pack([[[1], [2], [3]], []], 24).numbered(0)
    objectives = {"ce": NextToken(), "dlm": BlockDiffusion(), "kd": TCS(top_k=5), "blocks": BlockAttention("cosine")}
    manager, weights = manager_of(SETTINGS[name], **objectives), dict.fromkeys(objectives, 1.0)
    with torch.no_grad():
        taught = forward(teacher, clean, EVERYTHING)
    empty, usual = Tally(), Tally()
    counts = manager.counts(clean, weights)
    assert counts["ce"] == counts["dlm"] == counts["kd"] == 0
    loss = manager.loss(student, clean, weights, counts, taught, empty)
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in student.parameters())
    assert not any(float(empty.sums[each]) for each in ("ce", "dlm", "kd"))
    with torch.no_grad():
        taught = forward(teacher, documents(), EVERYTHING)
    manager.loss(student, documents(), weights, manager.counts(documents(), weights), taught, usual)
    assert {n: set(m) for n, m in empty.metrics.items()} == {n: set(m) for n, m in usual.metrics.items()}
