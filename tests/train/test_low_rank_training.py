"""Training low-rank factors by a recipe: they alone change, the student comes closer, wrong requests are errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy
from safetensors.torch import load_file

from wrinklefree.errors import InputError
from wrinklefree.models.io import load_checkpoint
from wrinklefree.models.low_rank import LowRankConfig, LowRankInit
from wrinklefree.quant.low_rank import low_rank_linears
from wrinklefree.train.compose import compose, refuse_unused
from wrinklefree.train.recipe import BudgetRecipe, Recipe
from wrinklefree.train.stage import train


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


def run(toy: Path, out: Path, *more: str, model: Path | None = None) -> list[float]:
    """Train factors of rank 4 and return the losses."""
    given = ["low_rank.rank=4"] if "low_rank.init=keep" not in more else []
    overrides = [*arguments(toy, "lrc_calibration"), "optimizer.lr=1e-2", *given, *more]
    if model is not None:
        overrides = [f"model={model}" if each.startswith("model=") else each for each in overrides]
    losses: list[float] = []
    assert train(compose(overrides), out=out, on_step=lambda _, figures: losses.append(figures["loss"])).finished
    return losses


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def test_only_the_factors_change_and_the_loss_falls(toy: Path, tmp_path: Path) -> None:
    run(toy, tmp_path / "start", "low_rank.init=random", "budget.max_steps=0")
    losses = run(toy, tmp_path / "out", "low_rank.init=random", "budget.max_steps=12")
    before, after = weights(tmp_path / "start"), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys()
    assert changed == {name for name in before if ".low_rank_" in name} and len(changed) == 28
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_the_closed_form_starts_where_random_factors_would_have_to_go(toy: Path, tmp_path: Path) -> None:
    random = run(toy, tmp_path / "random", "low_rank.init=random", "budget.max_steps=1")
    fitted = run(toy, tmp_path / "fitted", "low_rank.sequences=8", "budget.max_steps=1")
    assert fitted[0] < 0.7 * random[0]


def test_a_checkpoint_gets_factors_or_keeps_its_own(toy: Path, tmp_path: Path) -> None:
    """Convert, correct what is converted, go on with these factors: the last starts where the one before ended."""
    train(compose([*arguments(toy, "stage1_subln"), "budget.max_steps=0"]), out=tmp_path / "ternary")
    with pytest.raises(InputError, match="needs the original weights"):
        run(toy, tmp_path / "a", model=tmp_path / "ternary")
    first = run(toy, tmp_path / "b", "low_rank.init=random", "budget.max_steps=8", model=tmp_path / "ternary")
    again = run(toy, tmp_path / "c", "low_rank.init=keep", "budget.max_steps=8", model=tmp_path / "b")
    assert again[-1] < first[-1] < first[0]
    model, _, info = load_checkpoint(tmp_path / "c")
    assert {layer.rank for _, layer in low_rank_linears(model)} == {4} and info.stage == "lrc_calibration"
    with pytest.raises(InputError, match="has factors in 14 layers; use keep"):
        run(toy, tmp_path / "d", "low_rank.init=random", model=tmp_path / "b")


@pytest.mark.parametrize(
    ("init", "key"),
    [("none", "rank"), ("none", "trainable"), ("keep", "rank"), ("keep", "exclude"), ("random", "sequences"),
     ("random", "alternations"), ("keep", "damping")],
)  # fmt: skip
def test_a_key_that_nothing_would_read_is_refused(init: LowRankInit, key: str) -> None:
    recipe = Recipe("x", low_rank=LowRankConfig(init=init), budget=BudgetRecipe(max_steps=1))
    with pytest.raises(InputError, match=f"low_rank.{key}: nothing would read it"):
        refuse_unused(recipe, [f"low_rank.{key}"])
    refuse_unused(replace(recipe, low_rank=LowRankConfig("closed_form")), [f"low_rank.{key}"])


def test_exclusions_may_be_empty_and_ranks_shares() -> None:
    recipe = compose(["training=lrc_calibration", "low_rank.exclude=[]", "low_rank.rank=0.1"])
    assert recipe.low_rank.exclude == () and recipe.low_rank.rank == 0.1
    assert compose(["training=lrc_calibration", "low_rank.exclude=[o_proj]"]).low_rank.exclude == ("o_proj",)
    with pytest.raises(InputError, match=r"low_rank.rank: found 0.0"):
        compose(["training=lrc_calibration", "low_rank.rank=0"])


@pytest.mark.parametrize(
    ("init", "found"), [("random", "a task has a head to learn"), ("closed_form", "is measured on running text")]
)
def test_a_classifier_is_not_left_with_a_head_that_cannot_learn(init: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        compose(["training=classification", f"low_rank.init={init}"])
