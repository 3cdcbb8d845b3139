"""The loop: it learns, accumulation changes nothing, what is not finite is skipped, the teacher comes when needed."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from train_toys import ToyStream, toy_batch, toy_model

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.objectives import Layerwise, LogitsKD, NextToken
from wrinklefree.objectives.curriculum import Curriculum, Phase, StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.quant.bitlinear import quant_strength
from wrinklefree.teachers.local import LocalTeacher
from wrinklefree.train.guard import TrainingError
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.session import LoopConfig, RunResult

STEP = 4 * 24  # tokens of a step with the default toy settings
CONSTANT = Schedule("constant", warmup_ratio=0.0)
Figures = list[dict[str, float]]


def train_toy(
    student: nn.Module,
    manager: ObjectiveManager,
    steps: int,
    lr: float = 3e-3,
    config: LoopConfig | None = None,
    stream: ToyStream | None = None,
    **more: object,
) -> Figures:
    """Run a toy and return the figures of its steps."""
    seen: Figures = []
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=0.0)

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        seen.append(dict(figures))

    settings = {"schedule": CONSTANT, **more}
    run(
        student, stream or ToyStream(), optimizer, manager, config=config or LoopConfig(micro_batch=4),
        budget=Budget(tokens=steps * STEP), on_step=keep, **settings,
    )  # type: ignore[arg-type] # fmt: skip
    return seen


def ce_manager() -> ObjectiveManager:
    return ObjectiveManager({"next_token": Term(NextToken())})


@pytest.mark.parametrize("ternary", [False, True])
def test_next_token_training_learns(ternary: bool) -> None:
    figures = train_toy(toy_model(1, ternary=ternary), ce_manager(), 60)
    assert figures[-1]["loss"] < 0.5 * figures[0]["loss"]
    assert [f["tokens"] for f in figures] == [STEP * (i + 1) for i in range(60)]


def test_a_ternary_student_approaches_its_teacher() -> None:
    student, teacher = toy_model(1, ternary=True), toy_model(1)
    terms = {"logits_kd": Term(LogitsKD(temperature=1.0)), "layerwise": Term(Layerwise(), 0.5)}
    figures = train_toy(student, ObjectiveManager(terms), 80, teacher=LocalTeacher(lambda: teacher, forward, student))
    assert figures[-1]["logits_kd/value"] < 0.3 * figures[0]["logits_kd/value"]
    assert figures[-1]["layerwise/one_minus_cos"] < 0.5 * figures[0]["layerwise/one_minus_cos"]
    assert figures[-1]["logits_kd/top1_agreement"] > figures[0]["logits_kd/top1_agreement"]
    assert "next_token/ce" in figures[-1]  # reported beside, at weight 0


def test_mixed_precision_learns_and_keeps_float32_parameters() -> None:
    student = toy_model(1, ternary=True)
    figures = train_toy(student, ce_manager(), 40, precision="bf16-mixed")
    exact = train_toy(toy_model(1, ternary=True), ce_manager(), 1)
    assert figures[0]["loss"] == pytest.approx(exact[0]["loss"], rel=0.02) and figures[0]["loss"] != exact[0]["loss"]
    assert figures[-1]["loss"] < 0.6 * figures[0]["loss"]
    assert {p.dtype for p in student.parameters()} == {torch.float32}


def test_one_batch_of_8_equals_four_accumulated_of_2() -> None:
    """Sequences hold different numbers of targets, so a mean of means would differ; the sums may not."""
    weights = []
    for micro, accumulation in ((8, 1), (2, 4)):
        student, teacher = toy_model(1), toy_model(2)
        terms = {"next_token": Term(NextToken()), "layerwise": Term(Layerwise(), 0.5)}
        optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
        run(
            student, ToyStream(), optimizer, ObjectiveManager(terms),
            config=LoopConfig(micro_batch=micro, accumulation=accumulation), budget=Budget(tokens=3 * 8 * 24),
            teacher=LocalTeacher(lambda teacher=teacher: teacher, forward), schedule=CONSTANT,
        )  # fmt: skip
        weights.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    start = torch.cat([p.detach().flatten() for p in toy_model(1).parameters()])
    moved = (weights[0] - start).norm()
    # The same float32 sums in another order, over three steps: relative 1e-5 of the way that was gone.
    assert (weights[0] - weights[1]).norm() < 1e-5 * moved


class Poisoned(ToyStream):
    """At the given sequences, one token is out of the ordinary: its embedding row is infinite in the model below."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.bad = bad

    def batch(self, first_sequence: int, size: int) -> TokenBatch:
        batch = super().batch(first_sequence, size)
        batch.input_ids[batch.input_ids == 63] = 62
        for k in range(size):
            if first_sequence + k in self.bad:
                batch.input_ids[k, 0] = 63
        return batch


def poisoned_model() -> nn.Module:
    model = toy_model(1, tie_word_embeddings=False)
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight[63] = math.inf
    return model


def test_a_step_that_is_not_finite_is_skipped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    student = poisoned_model()
    snapshots: list[list[torch.Tensor]] = []
    seen: Figures = []

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        snapshots.append([p.detach().clone() for p in student.parameters()])
        seen.append(dict(figures))

    run(
        student, Poisoned({5}), torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0), ce_manager(),
        config=LoopConfig(micro_batch=4), budget=Budget(tokens=4 * STEP), schedule=CONSTANT, on_step=keep,
    )  # fmt: skip
    assert [f["nonfinite"] for f in seen] == [0, 1, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(snapshots[0], snapshots[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(snapshots[1], snapshots[2], strict=True))
    assert math.isfinite(seen[-1]["loss"])
    assert "step skipped, weights unchanged" in capsys.readouterr().err


def test_steps_that_stay_infinite_end_the_run_with_a_diagnosis() -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row.*objectives \{'next_token/value': nan\}.*learning rate"):
        run(
            (student := poisoned_model()), Poisoned(set(range(100))), torch.optim.SGD(student.parameters(), lr=1e-3),
            ce_manager(), config=LoopConfig(micro_batch=4, max_nonfinite=3), budget=Budget(tokens=100 * STEP),
            schedule=CONSTANT,
        )  # fmt: skip


def test_gradients_are_clipped_to_the_norm() -> None:
    student = toy_model(1)
    before = torch.cat([p.detach().flatten() for p in student.parameters()])
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    result = run(
        student, ToyStream(), optimizer, ce_manager(), config=LoopConfig(micro_batch=4, clip_norm=0.01),
        budget=Budget(tokens=STEP), schedule=CONSTANT,
    )  # fmt: skip
    after = torch.cat([p.detach().flatten() for p in student.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert result.figures["grad_norm"] > 0.01 and result.position.clipped == 1


def test_the_teacher_is_in_memory_only_while_its_weight_is_above_0() -> None:
    made: list[weakref.ref[nn.Module]] = []
    loaded: list[bool] = []
    student = toy_model(1, ternary=True)

    def load() -> nn.Module:
        model = toy_model(1)
        made.append(weakref.ref(model))
        return model

    teacher = LocalTeacher(load, forward, student)
    terms = {"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD())}
    phases = [Phase("alone", 0.3, {"logits_kd": 0.0}), Phase("taught", 0.6), Phase("free", 1.0, {"logits_kd": 0.0})]
    manager = ObjectiveManager(terms)
    tokens: list[int] = []

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        loaded.append(teacher.loaded)
        tokens.append(position.tokens)

    run(
        student, ToyStream(), torch.optim.SGD(student.parameters(), lr=1e-3), manager,
        config=LoopConfig(micro_batch=4), budget=Budget(tokens=10 * STEP), teacher=teacher, schedule=CONSTANT,
        curriculum=Curriculum(manager.base_weights, phases, "step"), on_step=keep,
    )  # fmt: skip
    assert loaded == [False] * 4 + [True] * 3 + [False] * 3  # progress 0.3 still belongs to the first phase
    assert len(made) == 1 and made[0]() is None
    assert tokens == [STEP * (i + 1) for i in range(10)]  # the switch changes no step's tokens


def test_an_objective_that_needs_a_teacher_without_one_is_an_input_error() -> None:
    with pytest.raises(InputError, match="objectives logits_kd need a teacher"):
        train_toy(toy_model(1), ObjectiveManager({"logits_kd": Term(LogitsKD())}), 2)


def test_the_strength_follows_its_warm_up_and_ends_at_1() -> None:
    student = toy_model(1, ternary=True)
    figures = train_toy(student, ce_manager(), 10, warmup=StrengthWarmup("linear", 0.5))
    assert [round(f["lambda"], 9) for f in figures] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert quant_strength(student).value == 1.0
    assert 0.05 < figures[0]["ternary/zeros"] < 0.7


def test_time_bounds_a_run_and_its_schedule_still_ends() -> None:
    student = toy_model(1)
    seen: Figures = []
    result = run(
        student, ToyStream(), torch.optim.AdamW(student.parameters(), lr=1e-3), ce_manager(),
        config=LoopConfig(micro_batch=4), budget=Budget(seconds=1.5), schedule=Schedule("linear", warmup_ratio=0.1),
        on_step=lambda position, figures: seen.append(dict(figures)),
    )  # fmt: skip
    assert 1.5 <= result.position.seconds < 4.0 and result.position.step > 3
    assert seen[-1]["lr"] < 0.3 * max(f["lr"] for f in seen)


def test_a_budget_without_an_end_is_an_input_error() -> None:
    with pytest.raises(InputError, match="total_tokens, max_steps and max_seconds are all null"):
        Budget()


def test_an_objective_that_contributes_almost_nothing_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    terms = {"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD(), 1e-9)}
    figures = train_toy(toy_model(1), ObjectiveManager(terms), 2, teacher=LocalTeacher(lambda: toy_model(2), forward))
    assert figures[0]["logits_kd/share"] < 0.01
    assert capsys.readouterr().err.count("objective logits_kd is 0.00% of the loss") == 1


class Mixed(ToyStream):
    """Notes the shares it is given, as a stream of two sources would apply them."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[tuple[int, tuple[float, ...]]] = []

    def set_weights(self, weights: Sequence[float], position: int) -> None:
        self.history.append((position, tuple(weights)))

    def state_dict(self) -> dict[str, Any]:
        return {"history": [list(entry) for entry in self.history]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history = [(first, tuple(weights)) for first, weights in state["history"]]


def test_phases_switch_the_data_and_the_switch_is_in_the_checkpoint(tmp_path: Path) -> None:
    stream, manager = Mixed(), ce_manager()
    phases = [Phase("books", 0.5, data={"books": 1.0}), Phase("code", 1.0, data={"code": 3.0, "books": 1.0})]
    config = LoopConfig(micro_batch=4, source_names=("code", "books"), state_dir=tmp_path)
    curriculum = Curriculum(manager.base_weights, phases)
    train_toy(toy_model(1), manager, 8, config=config, stream=stream, curriculum=curriculum)
    # Progress 0.5 (after 4 steps of 4 sequences) still belongs to the first phase.
    assert stream.history == [(0, (0.0, 1.0)), (20, (3.0, 1.0))]
    again = Mixed()
    train_toy(toy_model(1), ce_manager(), 8, config=config, stream=again, curriculum=curriculum)
    assert again.history == stream.history
    with pytest.raises(InputError, match="this stream has a single source"):
        train_toy(toy_model(1), manager, 2, curriculum=curriculum)


def test_muon_at_the_reported_rate_stays_finite_on_a_qwen3_style_model() -> None:
    """The settings under which a run once turned to NaN: QK-norm, high Muon rate, but with the strength warmed up."""
    student = toy_model(1, family="qwen3", ternary=True, initializer_range=0.05)
    optimizer = build_optimizer(student, OptimizerConfig(kind="muon", muon_scaling="original", muon_lr=0.02, lr=1e-3))
    seen: list[float] = []
    run(
        student, ToyStream(), optimizer, ce_manager(),
        config=LoopConfig(micro_batch=4), budget=Budget(tokens=150 * STEP),
        schedule=Schedule("wsd", warmup_ratio=0.1), warmup=StrengthWarmup("linear", 0.1),
        on_step=lambda position, figures: seen.extend([figures["loss"], figures["grad_norm"]]),
    )  # fmt: skip
    assert len(seen) == 300 and all(map(math.isfinite, seen))
    assert seen[-2] < 0.5 * seen[0]


def test_weight_zero_phase_gives_exactly_the_plain_cross_entropy_run() -> None:
    """The curriculum's objective at weight 0 leaves no trace in weights, bit for bit."""
    states = []
    for terms in (
        {"next_token": Term(NextToken())},
        {"next_token": Term(NextToken()), "layerwise": Term(Layerwise(), 0.0)},
    ):
        student = toy_model(1)
        train_toy(student, ObjectiveManager(terms), 3)
        states.append(torch.cat([p.detach().flatten() for p in student.parameters()]))
    assert torch.equal(states[0], states[1])


def test_figures_are_logged_with_the_keys_a_reader_needs(tmp_path: Path) -> None:
    figures = train_toy(toy_model(1, ternary=True), ce_manager(), 1)[0]
    needed = {"loss", "lambda", "lr", "grad_norm", "tokens", "tokens_per_second", "progress", "next_token/ce"}
    assert needed <= figures.keys() and "ternary/zeros" in figures
    assert toy_batch().num_targets == 8 + 0 + 9 + 13


class Counting:
    """A companion that counts the steps it saw."""

    name = "counting"

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.count = 0

    def before_step(self, position: Position, progress: float) -> None:
        self.seen.append(("before", position.step))

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        self.seen.append(("after", position.step))
        self.count += 1
        return {"counting/steps": float(self.count)}

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_companions_act_around_every_step_and_are_in_the_checkpoint(tmp_path: Path) -> None:
    def train(steps: int, companion: Counting) -> RunResult:
        model = toy_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        config = LoopConfig(micro_batch=2, state_dir=tmp_path / "state")
        stream = ToyStream()
        tokens = steps * stream.batch(0, 2).input_ids.numel()
        return run(model, stream, optimizer, ce_manager(), config=config, budget=Budget(tokens), companions=[companion])

    first, second = Counting(), Counting()
    train(2, first)
    assert first.seen == [("before", 0), ("after", 0), ("before", 1), ("after", 1)]
    assert train(4, second).figures["counting/steps"] == 4.0
    assert second.seen[0] == ("before", 2)
