"""A diffusion model through stages: its MASK token, marker and teacher; what later stages keep; phases of recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import SMALL, arguments, write_toy

from wrinklefree.errors import InputError
from wrinklefree.models.block_decoding import decode_blocks
from wrinklefree.models.io import load_checkpoint, load_source
from wrinklefree.models.mask_token import MASK_TOKEN, DiffusionMarker, add_mask_token
from wrinklefree.train.compose import compose
from wrinklefree.train.diffusion import match_student
from wrinklefree.train.footprint import activation_bytes
from wrinklefree.train.plan import flops_per_token
from wrinklefree.train.position import Position
from wrinklefree.train.shape import Shape
from wrinklefree.train.stage import train

SMALL_BLOCKS = ["diffusion.block_size=4", "batch.accumulation=1"]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_toy(tmp_path_factory.mktemp("toy"))
    first = directory / "texts" / "00.txt"
    first.write_text(f"the number {MASK_TOKEN} is spelled out\n" + first.read_text(encoding="utf-8"), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def diffusion_model(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "dlm"
    train(compose([*arguments(toy, "tcs"), *SMALL_BLOCKS]), out=out)
    return out


def test_the_checkpoint_says_how_to_decode_it_and_decodes(toy: Path, diffusion_model: Path) -> None:
    model, tokenizer, info = load_checkpoint(diffusion_model)
    assert info.dlm == {
        "mask_token_id": 300, "block_size": 4, "token_shift": True, "variant": "fast_dllm",
        "clean_half": "block_causal",
    }  # fmt: skip
    marker = DiffusionMarker.of(info.dlm, str(diffusion_model))
    assert model.config.vocab_size == 301 and tokenizer.mask_token_id == 300
    assert len(decode_blocks(model, marker, [1, 2, 3], 6).ids) == 6
    raw = json.loads((toy / "model" / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match="was not trained for block diffusion"):
        DiffusionMarker.of(raw.get("wrinklefree"), str(toy / "model"))


def test_a_later_stage_keeps_the_mask_and_may_change_the_blocks(
    toy: Path, diffusion_model: Path, tmp_path: Path
) -> None:
    """Diffusion again, with another variant: no second token, and its row goes on from where it was."""
    more = ["training=dlm_pretraining", f"model={diffusion_model}", f"data={toy / 'texts'}", *SMALL]
    recipe = compose([*more, "diffusion.block_size=8", "diffusion.variant=causal", "budget.max_steps=0"])
    train(recipe, out=tmp_path / "more")
    model, tokenizer, info = load_checkpoint(tmp_path / "more")
    before = load_checkpoint(diffusion_model)[0]
    assert info.dlm is not None and (info.dlm["mask_token_id"], info.dlm["block_size"]) == (300, 8)
    assert len(tokenizer) == 301 and info.dlm["clean_half"] == "causal"
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_an_autoregressive_stage_after_it_has_a_teacher_and_leaves_the_marker(
    toy: Path, diffusion_model: Path, tmp_path: Path
) -> None:
    """The original model does not know MASK: it is given the row, and neither model ever finds it probable."""
    seen: list[Mapping[str, float]] = []
    recipe = compose(["training=quick_distill", f"model={diffusion_model}", f"data={toy / 'texts'}", *SMALL])
    train(recipe, out=tmp_path / "ar", on_step=lambda position, figures: seen.append(figures))
    assert len(seen) == 3 and all(figures["logits_kd/value"] < 20 for figures in seen)
    assert load_checkpoint(tmp_path / "ar")[2].dlm == load_checkpoint(diffusion_model)[2].dlm


def test_the_teacher_gets_the_students_mask_and_nothing_else(toy: Path, diffusion_model: Path) -> None:
    _, tokenizer, info = load_checkpoint(diffusion_model)
    teacher, own = load_source(str(toy / "model"))
    before = teacher.get_submodule("model.embed_tokens").weight.detach().clone()  # type: ignore[operator]
    match_student(teacher, own, tokenizer, info)
    after = teacher.get_submodule("model.embed_tokens").weight  # type: ignore[assignment]
    assert own.get_vocab() == tokenizer.get_vocab() and torch.equal(after[:300], before)  # type: ignore[index]
    match_student(teacher, own, tokenizer, info)
    assert len(own) == 301 == add_mask_token(teacher, own) + 1


def test_a_text_that_spells_out_mask_is_no_mask(toy: Path, tmp_path: Path) -> None:
    """Its target would have probability 0 and an infinite loss."""
    losses: list[float] = []
    recipe = compose([*arguments(toy, "unified"), *SMALL_BLOCKS, "budget.max_steps=40"])

    def keep(position: Position, figures: Mapping[str, float]) -> None:
        losses.append(figures["next_token/ce"])

    train(recipe, out=tmp_path / "out", on_step=keep)
    assert len(losses) == 40 and max(losses) < 20


def test_phases_of_unified_set_weights_as_written() -> None:
    curriculum = compose(["training=unified"]).run_curriculum
    expected = {0.0: (1.0, 0.0), 0.1: (1.0, 0.0), 0.2: (1.0, 0.15), 0.3: (1.0, 0.3), 0.55: (1.0, 0.4), 1.0: (0.5, 1.0)}
    for progress, (ce, dlm) in expected.items():
        weights = curriculum.at(progress).weights
        assert (weights["next_token"], weights["block_diffusion"]) == pytest.approx((ce, dlm))
    assert not compose(["training=dlm_distill"]).run_curriculum.at(0.05).weights["tcs"]
    assert compose(["training=full_run"]).run_curriculum.at(1.0).weights["tcs"] == 5.0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["training=stage2_pretrain"], 1),
        (["training=tcs"], 4),
        (["training=unified"], 5),
        (["training=unified", "diffusion.variant=llada"], 3),
        (["training=unified", "diffusion.variant=llada", "diffusion.block_size=null"], 2),
    ],
)
def test_a_recipe_knows_how_many_positions_it_computes_for_a_token(arguments: list[str], expected: int) -> None:
    assert compose(arguments).positions_per_token == expected


def test_plans_count_the_noised_positions() -> None:
    shape = Shape(layers=2, hidden=64, width=128, heads=4, keys=2, head=16, vocabulary=300, tied=True)
    plain, noised = compose(["training=stage2_pretrain"]), compose(["training=unified"])
    assert flops_per_token(noised, shape) == 5 * flops_per_token(plain, shape)
    # The positions, and masks of rows of twice the length.
    assert 4 < activation_bytes(noised, shape) / activation_bytes(plain, shape) <= 9
