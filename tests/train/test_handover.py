"""Trap T12: one stage's checkpoint is what the next one starts from, to the bit; a stage that fails harms neither."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import SMALL, arguments, write_toy
from safetensors.torch import load_file

from wrinklefree.errors import InputError
from wrinklefree.models.io import load_checkpoint, save_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.train.compose import compose
from wrinklefree.train.position import Position
from wrinklefree.train.stage import StageResult, train


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def second_stage(toy: Path, first: Path, out: Path, steps: int) -> StageResult:
    recipe = [
        "training=stage2_pretrain",
        f"model={first}",
        f"data={toy / 'texts'}",
        *SMALL,
        f"budget.max_steps={steps}",
    ]
    return train(compose(recipe), out=out)


def test_t12_stage_1_9_hands_its_checkpoint_to_stage_2_and_a_failing_stage_changes_nothing(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy")
    first = train(compose(arguments(toy, "stage1_9_layerwise")), out=tmp_path / "one").out
    written = digest(first / "model.safetensors")

    # No step: what stage 2 starts from is what it writes.
    before, after = (
        load_file(each / "model.safetensors") for each in (first, second_stage(toy, first, tmp_path / "zero", 0).out)
    )
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)

    def fail(position: Position, figures: Mapping[str, float]) -> None:
        raise RuntimeError("a trial that fails")

    recipe = compose(["training=stage2_pretrain", f"model={first}", f"data={toy / 'texts'}", *SMALL, "seed=1"])
    with pytest.raises(RuntimeError, match="a trial that fails"):
        train(recipe, out=tmp_path / "failed", on_step=fail)
    assert not (tmp_path / "failed" / "config.json").exists()

    result = second_stage(toy, first, tmp_path / "two", 3)
    assert math.isfinite(result.result.figures["next_token/ce"])
    assert load_checkpoint(tmp_path / "two")[2].stage == "stage2"
    assert digest(first / "model.safetensors") == written


def test_a_stage_begins_away_from_the_thresholds_where_scales_are_fitted(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "toy")
    plain = train(compose(arguments(toy, "stage1_9_layerwise")), out=tmp_path / "plain").out
    begin = ["training=stage2_pretrain", f"data={toy / 'texts'}", *SMALL, "budget.max_steps=0", "model.margin=0.2"]
    with pytest.raises(InputError, match=r"model\.margin: no layer of .*plain has scales of its own"):
        train(compose([*begin, f"model={plain}"]), out=tmp_path / "refused")

    model, tokenizer, info = load_checkpoint(plain)
    for _, linear in bit_linears(model):
        linear.set_scale(linear.ternary()[1])
    save_checkpoint(model, tokenizer, tmp_path / "fitted", info)
    train(compose([*begin, f"model={tmp_path / 'fitted'}"]), out=tmp_path / "begun")
    begun = load_checkpoint(tmp_path / "begun")[0]
    for (name, before), (_, after) in zip(bit_linears(model), bit_linears(begun), strict=True):
        assert torch.equal(before.ternary()[0], after.ternary()[0]), name
        assert not torch.equal(before.weight, after.weight), name
