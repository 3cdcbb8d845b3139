"""`wf eval --likelihood block` on a toy diffusion checkpoint: its figures are those of the parts, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_checkpoints

from wrinklefree.cli.main import main
from wrinklefree.eval.diffusion import bound
from wrinklefree.eval.loss import held_out_loss, torch_logits, without_tokens
from wrinklefree.eval.masked_losses import torch_masked_losses
from wrinklefree.eval.opening import open_scorer
from wrinklefree.eval.text import evaluation_documents, evaluation_text
from wrinklefree.eval.torch_scorer import own_tokenizer
from wrinklefree.models.io import load_checkpoint
from wrinklefree.models.mask_token import DiffusionMarker
from wrinklefree.quant.bitlinear import full_strength

MASK = 200  # of the toy's bytes one that the text does not have
MARKERS = {
    "causal": DiffusionMarker(MASK, 8, True, "causal", "causal"),
    "fast_dllm": DiffusionMarker(MASK, 8, True, "fast_dllm", "block_causal"),
    "llada": DiffusionMarker(MASK, None, False, "llada", "block_causal"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Paths: a checkpoint marked as each kind of diffusion model, one that is none, a text."""
    root = tmp_path_factory.mktemp("models")
    for name, marker in {**MARKERS, "none": None}.items():
        path = toy_checkpoints.write(root / name) / "config.json"
        config = json.loads(path.read_text())
        config["wrinklefree"]["dlm"] = marker and marker.to_json()
        path.write_text(json.dumps(config))
    (root / "text.txt").write_text("Some text to be scored by blocks, and by masks.\n" * 6, encoding="utf-8")
    return {name: str(root / name) for name in (*MARKERS, "none", "text.txt")}


def evaluated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["eval", *words, "--json", "-"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


@pytest.mark.parametrize("name", MARKERS)
def test_figures_are_those_of_the_parts(name: str, models: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--perplexity", models["text.txt"], "--window", "40"]
    found = evaluated(capsys, models[name], *words, "--likelihood", "block", "--samples", "3", "--seed", "9")
    model, tokenizer, _ = load_checkpoint(models[name])
    text = evaluation_text(evaluation_documents(models["text.txt"]), own_tokenizer(tokenizer).encode, 40)
    marker = MARKERS[name]
    with full_strength(model):
        masked = torch_masked_losses(model, marker, [256])
        exact = held_out_loss(without_tokens(torch_logits(model), [MASK]), text)
    block = bound(masked, text, marker.block_size, samples=3, seed=9)
    assert found["loss"] == pytest.approx(block.loss, rel=0.01)  # padding, token 256 or none, is a rare token
    assert found["samples"] == 3 and found["seed"] == 9 and found["dlm"] == marker.to_json()
    if name == "causal":
        assert found["ar"]["loss"] == pytest.approx(exact.loss, rel=0.01) and found["no_ar"] == ""
        again = evaluated(capsys, models[name], *words)
        assert again["loss"] == found["ar"]["loss"] and again["tokens"] == found["tokens"]
    else:
        assert found["ar"] is None and "token" in found["no_ar"]
        assert evaluated(capsys, models[name], *words)["no_ar"] == found["no_ar"]  # said beside a plain perplexity too


def test_t16_a_diffusion_models_loss_gives_mask_no_probability(models: dict[str, str]) -> None:
    with open_scorer(models["causal"]) as opened, open_scorer(models["none"]) as plain:
        ours, theirs = (np.asarray(model.logits(np.arange(20))) for model in (opened, plain))
    assert opened.diffusion is not None and opened.diffusion.never[0] == MASK and np.isneginf(ours[:, MASK]).all()
    kept = [token for token in range(theirs.shape[1]) if token not in opened.diffusion.never]
    np.testing.assert_array_equal(ours[:, kept], theirs[:, kept])


def test_a_teacher_with_a_smaller_vocabulary_can_be_compared(
    models: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher never had the MASK row; and pieces of logits are widened as whole ones are."""
    words = [models["causal"], "--perplexity", models["text.txt"], "--window", "40", "--teacher", models["none"]]
    assert 0 <= evaluated(capsys, *words)["agreement"]["kl"] < 0.1
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    whole = without_tokens(lambda ids: rows, [1, 4])(np.arange(4))
    pieces = without_tokens(lambda ids: iter([rows[:3], rows[3:]]), [1, 4])(np.arange(4))
    assert isinstance(whole, np.ndarray) and whole.shape == (4, 5) and np.isneginf(whole[:, [1, 3, 4]]).all()
    np.testing.assert_array_equal(np.concatenate(list(pieces)), whole)
    np.testing.assert_array_equal(whole[:, [0, 2]], rows[:, [0, 2]])


def test_what_does_not_go_together_is_refused(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = ["--perplexity", models["text.txt"], "--likelihood", "block"]
    for words, message in (
        ([models["none"], *text], "not trained for block diffusion"),
        ([models["causal"], *text, "--teacher", models["none"]], "--teacher and --stride"),
        ([models["causal"], *text, "--stride", "4"], "--teacher and --stride"),
        ([models["causal"], *text, "--window", "999"], "context of 256 tokens"),
        ([models["causal"], *text, "--samples", "1"], "samples"),
        ([models["causal"], *text[:2], "--likelihood", "blocks"], "did you mean 'block'"),
    ):
        assert main(["eval", *words]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.out == ""
