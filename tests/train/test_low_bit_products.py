"""Int8 and fp8 products in a run: near the float run's losses, counted in figures and summary, resumed, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from recipe_toys import arguments, write_toy

from wrinklefree.errors import InputError
from wrinklefree.train.compose import compose
from wrinklefree.train.stage import train


def losses(toy: Path, out: Path, *settings: str) -> list[Mapping[str, float]]:
    seen: list[Mapping[str, float]] = []
    base = [*arguments(toy, "stage2_pretrain"), "strength.kind=constant", "schedule.warmup_tokens=0"]
    train(compose([*base, *settings]), out=out, on_step=lambda position, figures: seen.append(figures))
    return seen


def test_runs_in_int8_and_fp8_follow_the_float_run_and_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy = write_toy(tmp_path)
    plain = losses(toy, tmp_path / "float", "model.granularity=row")
    int8 = losses(toy, tmp_path / "int8", "model.granularity=row", "model.compute=int8")
    said = capsys.readouterr().err
    for a, b in zip(plain, int8, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-3)
    # 14 layers, 2 micro-batches, 3 steps.
    assert int8[-1]["products/int8"] == 84 and int8[-1]["products/float"] == 0
    assert "model.compute=int8: asked for in 14 of 14 ternary layers." in said
    assert "forward products: int8 84 (100.0%)" in said and "products" not in str(plain)
    fp8 = losses(toy, tmp_path / "fp8", "model.compute=fp8", "model.fp8_min_size=64", "model.compute_exclude=[o_proj]")
    said = capsys.readouterr().err
    # Key and value have 32 outputs, output projections are excluded: 8 of the 12 asked for.
    assert (fp8[-1]["products/fp8"], fp8[-1]["products/float"]) == (48, 24)
    assert said.count("WARNING: model.compute=fp8: some products are computed in float: layers below") == 1
    assert fp8[0]["loss"] != plain[0]["loss"]


def test_counts_survive_a_resume(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    losses(toy, tmp_path / "out", "model.compute=int8", "budget.max_steps=2")
    more = losses(toy, tmp_path / "out", "model.compute=int8", "budget.max_steps=3")
    assert len(more) == 1 and more[0]["products/int8"] == 84


def test_unread_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    for key in ("model.fp8_min_size=64", "model.fp8_scaling=tensorwise"):
        with pytest.raises(InputError, match=r"only model.compute=fp8 reads it"):
            compose(["training=stage2_pretrain", key, "model.compute=int8"])
    with pytest.raises(InputError, match=r"model.compute is float"):
        compose(["training=stage2_pretrain", "model.compute_exclude=[o_proj]"])
    with pytest.raises(InputError, match=r"model.compute"):
        compose(["training=stage2_pretrain", "model.compute=int4"])
    toy = write_toy(tmp_path)
    with pytest.raises(InputError, match="did you mean 'o_proj'"):
        losses(toy, tmp_path / "out", "model.compute=int8", "model.compute_exclude=[o_prj]")
