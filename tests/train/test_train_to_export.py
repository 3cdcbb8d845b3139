"""From training to the packed file, for each granularity: the weights of the forward are the file's codes x scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from recipe_toys import arguments, write_toy

from wrinklefree.artifact.manifest import open_packed
from wrinklefree.artifact.packing import unpack_codes, unpack_group_scales
from wrinklefree.export.export import export
from wrinklefree.models.io import load_checkpoint
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import dequantize
from wrinklefree.train.compose import compose
from wrinklefree.train.stage import train


@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_the_file_holds_what_was_trained(tmp_path: Path, granularity: str) -> None:
    """Bit for bit: no second rounding anywhere. The run reports zeros and flips, and the zeros are the file's."""
    toy, seen = write_toy(tmp_path), list[Mapping[str, float]]()
    settings = [*arguments(toy, "stage2_pretrain"), f"model.granularity={granularity}", "strength.kind=constant",
                "log.ternary_every=1", "schedule.warmup_tokens=0"]  # fmt: skip
    train(compose(settings), out=tmp_path / "out", on_step=lambda position, figures: seen.append(figures))
    report = export(tmp_path / "out", tmp_path / "packed", threads=1, greedy_tokens=8)
    model, _, info = load_checkpoint(tmp_path / "out")
    packed = open_packed(tmp_path / "packed")
    for name, layer in bit_linears(model):
        shape = layer.out_features, layer.in_features
        codes = torch.from_numpy(unpack_codes(packed.weights.array(f"{name}.weight"), *shape, packed.info.layout))
        stored = packed.weights.array(f"{name}.weight_scale")
        if granularity == "group":
            stored = unpack_group_scales(stored, shape[0])
        scale = torch.from_numpy(stored.copy())
        assert torch.equal(layer.effective_weight(), dequantize(codes, scale, info.spec))
    assert report.codes is not None
    assert seen[-1]["ternary/zeros"] == pytest.approx(report.codes.zeros_written) and seen[-1]["ternary/flips"] > 0
