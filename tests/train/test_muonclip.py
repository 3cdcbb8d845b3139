"""MuonClip in the loop: figures, the bound, exact resume, a finite run with the settings of a full one (trap 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, nn
from train_toys import ToyStream, toy_model

from wrinklefree.errors import InputError
from wrinklefree.models.qk_clip import _scale_rows, watch_logits
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.curriculum import StrengthWarmup
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.optim.schedules import muon_learning_rate
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.qk_clip import QkClip
from wrinklefree.train.session import LoopConfig, RunResult

STEP = 4 * 24
Figures = list[dict[str, float]]


def train(
    student: nn.Module, steps: int, clip: QkClip | None, config: LoopConfig | None = None, stop: int | None = None,
    **settings: Any,
) -> tuple[Figures, RunResult]:  # fmt: skip
    seen: Figures = []
    own = {"muon_lr": 5e-3, "lr": 1e-4, "weight_decay": 0.01, "muon_scaling": "original", **settings}
    done = run(
        student, ToyStream(), build_optimizer(student, OptimizerConfig("muonclip", **own)),
        ObjectiveManager({"next_token": Term(NextToken())}),
        config=config or LoopConfig(micro_batch=2, accumulation=2), budget=Budget(tokens=steps * STEP),
        schedule=Schedule("wsd", warmup_ratio=0.1), warmup=StrengthWarmup("linear", 0.2),
        companions=[clip] if clip else [], on_step=lambda position, figures: seen.append(dict(figures)),
    )  # fmt: skip
    return seen, done


def test_a_run_stays_at_its_threshold_and_says_so() -> None:
    student = toy_model(1, "qwen3", ternary=True)
    seen, _ = train(student, 12, QkClip(student, 1e9, 0.5, 1))
    start = seen[0]["qk/max_logit"]
    assert start > 2 and all(f["qk/clipped_heads"] == 0 for f in seen)
    student = toy_model(1, "qwen3", ternary=True)
    clipped, _ = train(student, 12, QkClip(student, start / 4, 0.5, 1))
    assert clipped[0]["qk/max_logit"] == start and clipped[0]["qk/clipped_heads"] > 0
    # Of a step's batch before the clip: a step adds little to a logit, other sequences may be somewhat over.
    assert all(f["qk/max_logit"] < 1.5 * start / 4 for f in clipped[2:])
    assert clipped[-1]["qk/clipped_so_far"] == sum(f["qk/clipped_heads"] for f in clipped)


def test_clip_every_leaves_the_steps_between_alone() -> None:
    student = toy_model(1, "llama", ternary=True)
    seen, _ = train(student, 7, QkClip(student, 0.5, 0.5, 3))
    assert [number for number, f in enumerate(seen, start=1) if "qk/max_logit" in f] == [3, 6]


def test_the_whole_step_is_watched_whatever_its_micro_batches() -> None:
    maxima = []
    for micro, accumulation in ((4, 1), (1, 4)):
        student = toy_model(1, "llama", ternary=True)
        config = LoopConfig(micro_batch=micro, accumulation=accumulation)
        maxima.append(train(student, 1, QkClip(student, 1e9, 0.5, 1), config)[0][0]["qk/max_logit"])
    assert maxima[0] == pytest.approx(maxima[1], rel=1e-5)


def test_resumed_training_with_clips_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def go(directory: Path, steps: int) -> tuple[nn.Module, RunResult, Figures]:
        student = toy_model(1, "llama", ternary=True)
        config = LoopConfig(micro_batch=4, state_dir=directory, save_every=3, identity="same")
        seen: Figures = []
        done = run(
            student, ToyStream(), build_optimizer(student, OptimizerConfig("muonclip", lr=1e-3)),
            ObjectiveManager({"next_token": Term(NextToken())}), config=config, budget=Budget(tokens=steps * STEP),
            schedule=Schedule("constant", warmup_ratio=0.0), companions=[QkClip(student, 2.0, 0.5, 2)],
            on_step=lambda position, figures: seen.append(dict(figures)),
        )  # fmt: skip
        return student, done, seen

    straight, _, whole = go(tmp_path / "straight", 6)
    go(tmp_path / "broken", 3)
    resumed, done, rest = go(tmp_path / "broken", 6)
    assert done.position.step == 6 and len(rest) == 3 and whole[1]["qk/clipped_heads"] > 0
    assert rest[-1]["qk/clipped_so_far"] == whole[-1]["qk/clipped_so_far"]
    for (name, left), right in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_t7_a_qwen3_style_run_with_the_settings_of_a_full_run_stays_finite(steps: int) -> None:
    student = toy_model(1, "qwen3", ternary=True)
    seen, done = train(student, steps, QkClip(student, 10.0, 0.5, 1))
    assert done.position.step == steps and done.position.nonfinite == 0
    assert all(math.isfinite(f["loss"]) and math.isfinite(f["grad_norm"]) for f in seen)
    assert all(torch.isfinite(p).all() for p in student.parameters())
    assert seen[-1]["loss"] < 0.7 * seen[0]["loss"]


def test_t7_an_infinite_gradient_is_skipped_and_nothing_is_clipped() -> None:
    student = toy_model(1, "qwen3", ternary=True)
    clip = QkClip(student, 0.1, 0.5, 1)  # every step clips
    weight = student.get_submodule("model.layers.0.mlp.up_proj").weight
    before: dict[str, torch.Tensor] = {}
    snapshots: list[dict[str, torch.Tensor]] = []
    calls = 0

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls != 5:  # two micro-batches in a step: the third step
            return gradient
        before.update({name: p.detach().clone() for name, p in student.named_parameters()})
        return gradient.index_fill(0, torch.tensor([0]), math.inf)

    assert isinstance(weight, nn.Parameter)
    weight.register_hook(poison)
    counts: list[tuple[int, int]] = []

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        counts.append((position.nonfinite, int("qk/max_logit" in figures)))
        snapshots.append({name: p.detach().clone() for name, p in student.named_parameters()})

    run(
        student, ToyStream(), build_optimizer(student, OptimizerConfig("muonclip", lr=1e-3)),
        ObjectiveManager({"next_token": Term(NextToken())}), config=LoopConfig(micro_batch=2, accumulation=2),
        budget=Budget(tokens=5 * STEP), companions=[clip], on_step=keep,
    )  # fmt: skip
    assert counts == [(0, 1), (0, 1), (1, 0), (1, 1), (1, 1)]
    assert all(torch.equal(value, snapshots[2][name]) for name, value in before.items())
    assert not all(torch.equal(value, snapshots[3][name]) for name, value in before.items())


def test_t7_the_rate_of_muon_falls_with_the_size_of_the_model() -> None:
    assert [muon_learning_rate(n) for n in (135_000_000, 350_000_000, 600_000_000)] == [0.02, 0.01, 0.005]


def test_t8_a_probe_before_the_run_leaves_one_watch_and_no_trace() -> None:
    """What a search for the batch size does: forwards of a model in training, eval and back, and only then the run."""
    student = toy_model(1, "llama", ternary=True)
    QkClip(student, 2.0, 0.5, 1)  # built for the search and dropped
    for size in (1, 2, 4):
        student.train()
        student(ToyStream().batch(0, size).input_ids).logits.sum().backward()
        student.eval()
    student.zero_grad()
    seen, _ = train(student, 3, QkClip(student, 2.0, 0.5, 1))
    assert sum(len(module._forward_hooks) for module in student.modules()) == 3 * 2
    fresh = toy_model(1, "llama", ternary=True)
    expected, _ = train(fresh, 3, QkClip(fresh, 2.0, 0.5, 1))
    for name in ("loss", "qk/max_logit", "qk/clipped_heads", "grad_norm"):
        assert [f[name] for f in seen] == [f[name] for f in expected]


def test_t8_bfloat16_activations_are_clipped_with_float32_mathematics() -> None:
    student = toy_model(1, "llama", ternary=True).to(torch.bfloat16)
    seen, _ = train(student, 3, QkClip(student, 2.0, 0.5, 1))
    assert seen[0]["qk/clipped_heads"] > 0 and all(math.isfinite(f["loss"]) for f in seen)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


def test_a_sharded_weight_takes_its_own_part_of_the_factors() -> None:
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        linear = nn.Linear(6, 4)
        expected = linear.weight.detach() * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None]
        mesh = init_device_mesh("cpu", (1,))
        linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh, [Shard(0)]))
        with torch.no_grad():
            _scale_rows(linear, torch.tensor([1.0, 2.0, 3.0, 4.0]))
        assert torch.equal(linear.weight.full_tensor(), expected)  # type: ignore[operator]
    finally:
        distributed.destroy_process_group()


def test_a_model_without_separate_projections_is_refused() -> None:
    model = toy_model(1)
    del model.get_submodule("model.layers.1.self_attn").k_proj
    with pytest.raises(InputError, match="layer 1: QK-clip needs self_attn with q_proj"):
        watch_logits(model)
