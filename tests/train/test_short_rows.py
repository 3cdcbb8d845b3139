"""Short rows in bfloat16 on a CPU train with the plain form of attention, and learn the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.fabric import Fabric
from recipe_toys import SMALL, write_toy
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends

from wrinklefree.train import stage
from wrinklefree.train.compose import compose
from wrinklefree.train.parallel import attention_kernel


@pytest.mark.parametrize(
    ("precision", "length", "plain"), [("bf16-mixed", 64, True), ("bf16-mixed", 65, False), ("32-true", 64, False)]
)
def test_which_attention_runs(precision: str, length: int, plain: bool) -> None:
    before = set(_cur_sdpa_kernel_backends())
    with attention_kernel(Fabric(accelerator="cpu", devices=1), precision, length):
        inside = set(_cur_sdpa_kernel_backends())
    assert inside == ({SDPBackend.MATH} if plain else before)
    assert set(_cur_sdpa_kernel_backends()) == before


def test_a_run_learns_the_same_with_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy(tmp_path)
    overrides = ["training=stage2_pretrain", f"model={tmp_path / 'model'}", f"data={tmp_path / 'texts'}", *SMALL]
    recipe = compose([*overrides, "device.precision=bf16-mixed", "budget.max_steps=3", "log.log_every=1"])
    stage.train(recipe, out=tmp_path / "plain")
    monkeypatch.setattr("wrinklefree.train.parallel._PLAIN_ATTENTION", 0)
    stage.train(recipe, out=tmp_path / "fused")
    plain, fused = (losses(tmp_path / name) for name in ("plain", "fused"))
    assert len(plain) == 3 and plain == pytest.approx(fused, rel=2e-2)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
