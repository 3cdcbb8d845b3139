"""A Haar model from recipe to checkpoint: it learns, is what it was when loaded again, and is not exported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy

from wrinklefree.errors import InputError
from wrinklefree.export.export import export
from wrinklefree.export.zeros import checkpoint_zeros
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.haar import haar_quantize
from wrinklefree.train.compose import compose
from wrinklefree.train.stage import train


def test_a_haar_model_trains_loads_again_and_is_refused_by_export(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    losses: list[Mapping[str, float]] = []
    settings = [*arguments(toy, "stage2_pretrain"), "model.quantizer=haar", "strength.kind=constant",
                "schedule.warmup_tokens=0", "budget.max_steps=8", "optimizer=adamw", "optimizer.lr=1e-2"]  # fmt: skip
    train(compose(settings), out=tmp_path / "out", on_step=lambda position, figures: losses.append(figures))
    assert losses[-1]["loss"] < losses[0]["loss"] - 0.3
    assert 0.1 < losses[0]["ternary/zeros"] < 0.6
    model, _, info = load_checkpoint(tmp_path / "out")
    assert info.spec.quantizer == "haar"
    layers = dict(bit_linears(model))
    for layer in layers.values():
        assert torch.equal(layer.effective_weight(), haar_quantize(layer.weight, layer.spec))
    shares = checkpoint_zeros(tmp_path / "out")
    for name, layer in layers.items():
        assert shares[f"{name}.weight"] == pytest.approx(float((layer.ternary()[0] == 0).float().mean()))
    with pytest.raises(InputError, match=r"model\.quantizer=absmean"):
        export(tmp_path / "out", tmp_path / "packed")
    assert not list(tmp_path.glob("*packed*"))
    again = ["training=stage2_pretrain", f"model={tmp_path / 'out'}", "model.quantizer=haar"]
    with pytest.raises(InputError, match=r"model\.quantizer: nothing would read it"):
        train(compose(again), out=tmp_path / "again")


def test_unknown_quantizers_are_refused() -> None:
    with pytest.raises(InputError, match="absmean"):
        compose(["training=stage2_pretrain", "model.quantizer=har"])
