"""The bound of a packed diffusion model by the engine's passes: that of its checkpoint in torch, mask by mask."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_checkpoints

from wrinklefree.cli.main import main
from wrinklefree.engine import Engine
from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import block_numbers, draw
from wrinklefree.eval.likelihood import block_likelihood
from wrinklefree.eval.masked_engine import engine_masked_losses
from wrinklefree.eval.masked_losses import torch_masked_losses
from wrinklefree.eval.trace import read_trace
from wrinklefree.export.export import export
from wrinklefree.models.io import load_checkpoint
from wrinklefree.models.mask_token import DiffusionMarker
from wrinklefree.quant.bitlinear import full_strength

pytest.importorskip("wrinklefree._native", reason="the engine is not built")
MASK = 200
MARKERS = {
    "fast_dllm": DiffusionMarker(MASK, 8, True, "fast_dllm", "block_causal"),
    "causal clean half": DiffusionMarker(MASK, 8, True, "fast_dllm", "causal"),
    "causal": DiffusionMarker(MASK, 8, True, "causal", "causal"),
    "llada": DiffusionMarker(MASK, 8, False, "llada", "block_causal"),
}
TEXT = "Two whole blocks, more, and a part."


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint, and the same packed, for each marker."""
    root = tmp_path_factory.mktemp("models")
    for name, marker in MARKERS.items():
        path = toy_checkpoints.write(root / name) / "config.json"
        config = json.loads(path.read_text())
        config["wrinklefree"]["dlm"] = marker.to_json()
        path.write_text(json.dumps(config))
        export(root / name, root / f"{name}-packed", threads=1, verify=False)
    return root


@pytest.mark.parametrize("name", MARKERS)
def test_masked_losses_of_engine_and_torch_agree(name: str, root: Path) -> None:
    engine, marker = Engine.load(root / f"{name}-packed", threads=1), MARKERS[name]
    ids = np.array(engine.tokenizer.encode(TEXT), np.int64)
    blocks = block_numbers(len(ids), marker.block_size)
    masks = np.stack([draw(blocks, 3, 0, sample) for sample in range(4)])
    model = load_checkpoint(root / name)[0]
    with full_strength(model):
        expected = torch_masked_losses(model, marker)(ids, masks)
    found = engine_masked_losses(engine, marker)(ids, masks)
    assert (found[~masks] == 0).all() and (found[masks] > 0).all()
    # int8 embeddings and a float16 cache; a wrong row or rule is off by whole nats.
    apart = np.abs(found - expected)[masks]
    assert apart.max() < 0.5 and apart.mean() < 0.1, (apart.max(), apart.mean())


def test_eval_of_a_packed_model_and_its_checkpoint(root: Path) -> None:
    text = root / "text.txt"
    text.write_text(TEXT * 4)
    packed = block_likelihood(str(root / "causal-packed"), str(text), window=48, samples=3, threads=1)
    plain = block_likelihood(str(root / "causal"), str(text), window=48, samples=3)
    assert (packed.runs_on, plain.runs_on) == ("engine", "torch") and packed.dlm == plain.dlm
    assert packed.block.loss == pytest.approx(plain.block.loss, rel=0.01)
    assert packed.ar is not None and plain.ar is not None
    assert packed.ar.loss == pytest.approx(plain.ar.loss, rel=0.01) and packed.ar.tokens == packed.block.tokens


def test_what_generate_traces_can_be_drawn(root: Path) -> None:
    for mode in ("ar", "block"):
        words = ["--prompt", TEXT, "--mode", mode, "--max-tokens", "12", "--temperature", "0", "--threads", "1"]
        assert main(["generate", str(root / "fast_dllm-packed"), *words, "--trace", str(root / "trace.jsonl")]) == 0
        assert main(["trace", str(root / "trace.jsonl"), str(root / "trace.svg")]) == 0
        found = read_trace(root / "trace.jsonl")
        assert found.mode == mode and found.decided >= 1 and found.block_size == (8 if mode == "block" else None)
        assert "".join(found.prompt) == TEXT and mode in (root / "trace.svg").read_text()


def test_windows_beyond_the_context_and_models_without_blocks_are_refused(root: Path) -> None:
    engine, marker = Engine.load(root / "causal-packed", threads=1, context=36), MARKERS["causal"]
    ids = np.arange(35)
    masks = np.arange(35)[None] > 0
    with pytest.raises(InputError, match="context"):
        engine_masked_losses(engine, marker)(ids, masks)
    endless = DiffusionMarker(MASK, None, False, "llada", "block_causal")
    with pytest.raises(InputError, match="documents as one block"):
        engine_masked_losses(engine, endless)(ids, masks)
