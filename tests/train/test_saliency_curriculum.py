"""The saliency curriculum in a run: what it keeps when, exact resume, and what becomes of kept columns afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import write_toy
from torch import Tensor, nn
from train_toys import ToyStream, toy_model

from wrinklefree.errors import InputError
from wrinklefree.export.export import export
from wrinklefree.models.io import load_checkpoint
from wrinklefree.objectives import NextToken
from wrinklefree.objectives.manager import ObjectiveManager, Term
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.train.compose import compose
from wrinklefree.train.loop import run
from wrinklefree.train.position import Budget, Position, Schedule
from wrinklefree.train.recipe import SaliencyRecipe
from wrinklefree.train.saliency import SaliencyCurriculum
from wrinklefree.train.session import LoopConfig
from wrinklefree.train.stage import train


def trained(
    directory: Path, score: str, interrupt_at: int | None = None, **settings: float
) -> tuple[nn.Module, list[Mapping[str, float]]]:
    """12 steps of a toy with the curriculum; interrupted after a step, or taking up what was."""
    student, seen = toy_model(1, ternary=True), []
    recipe = SaliencyRecipe("linear", score, initial=0.25, update_interval=3, memory=0.9, **settings)  # type: ignore[arg-type]

    def watch(position: Position, figures: Mapping[str, float]) -> None:
        seen.append(figures)
        if position.step == interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    run(
        student, ToyStream(), torch.optim.AdamW(student.parameters(), lr=1e-2),
        ObjectiveManager({"next_token": Term(NextToken())}), config=LoopConfig(
            micro_batch=2, accumulation=2, state_dir=directory), budget=Budget(tokens=12 * 96),
        schedule=Schedule("constant", warmup_ratio=0.0), on_step=watch,
        companions=[SaliencyCurriculum(recipe, dict(bit_linears(student)))],
    )  # fmt: skip
    return student, seen


def state(model: nn.Module) -> dict[str, Tensor]:
    kept = {n: layer.kept_columns for n, layer in bit_linears(model) if layer.kept_columns is not None}
    return {**model.state_dict(), **kept}


@pytest.mark.parametrize("score", ["weight", "activation"])
@pytest.mark.parametrize("interrupt_at", [5, 6])
def test_resume_equals_the_uninterrupted_run(tmp_path: Path, score: str, interrupt_at: int) -> None:
    """Bit for bit, with scores, masks and measured inputs; the final share is not 0, so that masks are compared."""
    straight, _ = trained(tmp_path / "straight", score, final=0.1)
    _, first = trained(tmp_path / "halves", score, interrupt_at, final=0.1)
    resumed, second = trained(tmp_path / "halves", score, final=0.1)
    assert len(first) == interrupt_at and len(first) + len(second) == 12
    expected, found = state(straight), state(resumed)
    assert expected.keys() == found.keys() and any(value.dtype == torch.bool for value in found.values())
    unequal = {
        name: float((expected[name].double() - found[name].double()).abs().max())
        for name in expected
        if not torch.equal(expected[name], found[name])
    }
    assert not unequal, f"largest differences: {unequal}, threads: {torch.get_num_threads()}"


def test_the_share_falls_at_its_intervals_and_ends_on_time(tmp_path: Path) -> None:
    """Progress is step / 12: chosen at steps 0, 3, 6, 9, and at the first step past the end (0.8), which is 10."""
    model, seen = trained(tmp_path, "weight")
    expected = [0.25 * max(0.0, 1 - step / 12 / 0.8) for step in (0, 3, 6, 9)]
    kept = [figures["saliency/kept"] for figures in seen]
    for block, share in enumerate(expected):
        # Shares of 64 and 128 columns, each rounded to whole columns.
        assert kept[3 * block : min(3 * block + 3, 10)] == pytest.approx([share] * min(3, 10 - 3 * block), abs=0.01)
    assert kept[10:] == [0.0, 0.0]
    assert all(layer.kept_columns is None for _, layer in bit_linears(model))


def test_inputs_decide_when_they_are_asked_for(tmp_path: Path) -> None:
    student = toy_model(1, ternary=True)
    layers = dict(bit_linears(student))
    layer = layers["model.layers.0.mlp.down_proj"]
    curriculum = SaliencyCurriculum(
        SaliencyRecipe("linear", "activation", 0.01, 0.01, update_interval=1), {"down": layer}
    )
    x = torch.ones(3, 128)
    x[:, 7] = 1000.0
    curriculum.before_step(Position(step=0), 0.0)
    layer(x)
    curriculum.after_step(Position(step=0), {})
    curriculum.before_step(Position(step=1), 0.0)
    assert layer.kept_columns is not None and layer.kept_columns.nonzero().flatten().tolist() == [7]
    curriculum.after_step(Position(step=1), {})
    assert not layer._forward_pre_hooks


def test_kept_columns_are_in_the_checkpoint_and_refused_by_export_and_by_a_recipe_without_them(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    settings = [
        "training=stage2_pretrain", f"model={toy / 'model'}", f"data={toy / 'texts'}", "data.sequence_length=32",
        "batch.micro_batch=2", "batch.accumulation=1", "budget.total_tokens=null", "schedule.warmup_tokens=0",
        "strength.kind=constant", "device.accelerator=cpu", "budget.max_steps=4", "log.tracker=none",
    ]  # fmt: skip
    curriculum = ["saliency.kind=cosine", "saliency.final=0.125", "saliency.update_interval=1"]
    train(compose([*settings, *curriculum]), out=tmp_path / "kept")
    model, _, _ = load_checkpoint(tmp_path / "kept")
    counts = {int(layer.kept_columns.sum()) for _, layer in bit_linears(model) if layer.kept_columns is not None}
    assert counts == {8, 16}
    with pytest.raises(InputError, match=r"saliency.initial=0.125 saliency.final=0"):
        export(tmp_path / "kept", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
    settings[1] = f"model={tmp_path / 'kept'}"
    with pytest.raises(InputError, match="set saliency"):
        train(compose(settings), out=tmp_path / "refused")
    train(
        compose([*settings, "saliency.kind=linear", "saliency.initial=0.125", "saliency.end=0.5"]),
        out=tmp_path / "free",
    )
    model, _, _ = load_checkpoint(tmp_path / "free")
    assert all(layer.kept_columns is None for _, layer in bit_linears(model))
    export(tmp_path / "free", tmp_path / "packed", verify=False)


def test_settings_of_a_curriculum_that_is_off_are_refused() -> None:
    with pytest.raises(InputError, match=r"saliency.initial: nothing would read it, because saliency.kind is none"):
        compose(["training=stage2_pretrain", "saliency.initial=0.2"])
