"""Sequence classifiers against transformers' own, with padding on either side; directories loaded by transformers."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_toys import FAMILY_TOYS, VOCABULARY, documents, family_toy, tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from wrinklefree.errors import InputError
from wrinklefree.eval.opening import open_scorer
from wrinklefree.models.classification import as_classifier, class_names, classify
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source, save_checkpoint
from wrinklefree.models.plain import export_plain, save_plain
from wrinklefree.models.pooling import last_token, refuse_classifier
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec

LABELS = ("bad", "good", "neither")
SPEC = TernarySpec("group", 64)
PAD = 0


def classifier(family: str = "llama", strength: float | None = 1.0, **changes: Any) -> Any:
    torch.manual_seed(7)
    model = as_classifier(family_toy(family, **changes), LABELS, pad_id=PAD)  # type: ignore[arg-type]
    if strength is not None:
        convert_model(model, SPEC, strength=strength)
    return model


def padded(rows: list[list[int]], side: str, token: int = PAD) -> tuple[Tensor, Tensor]:
    length = max(len(row) for row in rows)
    ids, mask = [], []
    for row in rows:
        gap, real = [token] * (length - len(row)), [1] * len(row)
        ids.append(row + gap if side == "right" else gap + row)
        mask.append(real + [0] * len(gap) if side == "right" else [0] * len(gap) + real)
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", sorted(FAMILY_TOYS))
def test_t1_the_last_real_token_is_classified_whichever_side_is_padded(family: str, side: str, strength: float) -> None:
    """Forward and backward; logits (B, classes) equal those of each text alone; the backbone returns states."""
    model = classifier(family, strength)
    rows = documents(5, 11, 1, 8)
    ids, mask = padded(rows, side)
    logits = classify(model, ids, mask)
    assert logits.shape == (4, 3)
    for row, found in zip(rows, logits, strict=True):
        torch.testing.assert_close(found, classify(model, torch.tensor([row]))[0], rtol=1e-4, atol=1e-4)
    expected = [len(row) - 1 if side == "right" else 10 for row in rows]
    assert last_token(mask.bool()).tolist() == expected
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.shape == (4, 11, 32) and not hasattr(model, "lm_head")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "bitnet"])
def test_our_pooling_is_transformers_own_where_both_know_the_padding(family: str) -> None:
    model = classifier(family)
    ids, mask = padded(documents(5, 11, 3), "right")
    theirs = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(classify(model, ids, mask), theirs, rtol=1e-5, atol=1e-5)


def test_no_padding_token_and_one_that_occurs_in_the_text_are_no_matter() -> None:
    """transformers goes by the token's id: it refuses a batch without one, and skips real tokens that look like it."""
    model = classifier()
    model.config.pad_token_id = None
    rows = [[5, 6, 7, 9], [8, 9]]
    ids, mask = padded(rows, "right", token=9)
    found = classify(model, ids, mask)
    with pytest.raises(ValueError, match="no padding token"):
        model(input_ids=ids, attention_mask=mask)
    for row, logits in zip(rows, found, strict=True):
        torch.testing.assert_close(logits, classify(model, torch.tensor([row]))[0], rtol=1e-5, atol=1e-5)
    without = classify(model, torch.tensor([[5, 6, 7, 9]]))
    torch.testing.assert_close(without[0], found[0], rtol=1e-5, atol=1e-5)


def test_a_row_that_is_all_padding_is_finite() -> None:
    model = classifier()
    logits = classify(model, torch.tensor([[PAD, PAD], [5, 6]]), torch.tensor([[0, 0], [1, 1]]))
    assert torch.isfinite(logits).all()


def test_the_backbone_is_shared_and_its_training_is_kept() -> None:
    causal: Any = family_toy("llama")
    convert_model(causal, SPEC)
    body = causal.model
    model: Any = as_classifier(causal, LABELS, pad_id=PAD)
    assert model.model is body and len(list(bit_linears(model))) == 7 * 3
    assert class_names(model) == LABELS and model.config.problem_type == "single_label_classification"
    assert as_classifier(model, LABELS) is model
    with pytest.raises(InputError, match=r"is a classifier for \['bad', 'good', 'neither'\], the examples have"):
        as_classifier(model, ("a", "b"))
    with pytest.raises(InputError, match="problem 'several'"):
        as_classifier(causal, LABELS, "several")


@pytest.mark.parametrize(
    ("problem", "labels", "targets"),
    [
        ("single_label", LABELS, torch.tensor([0, 2])),
        ("multi_label", LABELS, torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),
        ("regression", ("value",), torch.tensor([0.5, -1.0])),
    ],
)
def test_transformers_computes_the_loss_of_each_kind_of_problem(
    problem: str, labels: tuple[str, ...], targets: Tensor
) -> None:
    model: Any = as_classifier(family_toy("llama"), labels, problem, pad_id=PAD)  # type: ignore[arg-type]
    ids, mask = padded(documents(4, 6), "right")
    result = model(input_ids=ids, attention_mask=mask, labels=targets)
    logits = classify(model, ids, mask)
    losses: dict[str, Any] = {
        "single_label": nn.functional.cross_entropy,
        "multi_label": nn.functional.binary_cross_entropy_with_logits,
        "regression": lambda a, b: nn.functional.mse_loss(a[:, 0], b),
    }
    torch.testing.assert_close(result.loss, losses[problem](logits, targets))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "bitnet"])
def test_a_checkpoint_knows_its_task(family: str, tmp_path: Path) -> None:
    model = classifier(family, None)
    subln: Any = "none" if family == "bitnet" else "ones"
    convert_model(model, SPEC, subln=subln)
    info = CheckpointInfo("classification", spec=SPEC, subln=subln)
    save_checkpoint(model, tokenizer(), tmp_path / "out", info)
    again, _, found = load_checkpoint(tmp_path / "out")
    ids, mask = padded(documents(5, 11, 3), "right")
    assert found == info and class_names(again) == LABELS and type(again).__name__ == type(model).__name__
    torch.testing.assert_close(classify(again, ids, mask), classify(model, ids, mask), rtol=0, atol=0)


def test_a_fine_tuned_original_comes_back_as_a_classifier(tmp_path: Path) -> None:
    model = classifier("qwen3", None)
    save_checkpoint(model, tokenizer(), tmp_path / "out", None)
    again, _ = load_source(str(tmp_path / "out"))
    ids, mask = padded(documents(5, 9), "left")
    torch.testing.assert_close(classify(again, ids, mask), classify(model, ids, mask), rtol=0, atol=0)


_ALONE = """
import sys, torch
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
assert not any(name.startswith("wrinklefree") for name in sys.modules)
assert [model.config.id2label[i] for i in range(3)] == ["bad", "good", "neither"]
ids = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0]])
torch.save(model(input_ids=ids, attention_mask=(ids != 0).long()).logits.detach(), sys.argv[2])
"""


def without_int8(model: Any, ids: Tensor) -> Tensor:
    """Our own logits with the ternary weights but activations left alone: a copy whose linears are plain."""
    plain = copy.deepcopy(model)
    for name, layer in list(bit_linears(plain)):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        linear.weight, linear.bias = nn.Parameter(layer.effective_weight().detach()), layer.bias
        parent, _, attribute = name.rpartition(".")
        setattr(plain.get_submodule(parent), attribute, linear)
    with torch.no_grad():
        return classify(plain, ids, (ids != 0).long())


def test_transformers_alone_loads_a_plain_directory_and_computes_our_weights(tmp_path: Path) -> None:
    """In an interpreter that never imports wrinklefree. What is left of the difference is int8 activations."""
    model = classifier("llama")
    for _, layer in bit_linears(model):
        layer.set_scale(layer.ternary()[1] * 1.2)  # fitted scales, as calibration leaves them
    save_plain(model, tokenizer(), tmp_path / "plain")
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path / "plain"), str(tmp_path / "logits.pt")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(tmp_path / "logits.pt", weights_only=True)
    ids = torch.tensor([[3, 4, 5, 6, 7, 8], [9, 10, 11, 0, 0, 0]])
    torch.testing.assert_close(theirs, without_int8(model, ids), rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        ours = classify(model, ids, (ids != 0).long())
    assert 0.0 < (ours - theirs).abs().max() < 0.2 * ours.abs().max()


def test_a_plain_directory_is_refused_where_transformers_has_no_place_for_a_norm(tmp_path: Path) -> None:
    model = classifier("llama", None)
    with pytest.raises(InputError, match="is not ternary"):
        save_plain(model, tokenizer(), tmp_path / "out")
    convert_model(model, SPEC, subln="ones")
    with pytest.raises(InputError, match="transformers has no such norm; convert with subln=none"):
        save_plain(model, tokenizer(), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    bitnet = classifier("bitnet")
    save_plain(bitnet, tokenizer(), tmp_path / "bitnet")  # its norms are the family's own
    config = AutoConfig.from_pretrained(tmp_path / "bitnet")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bitnet", config=config)
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(classify(again, ids), without_int8(bitnet, ids), rtol=1e-5, atol=1e-5)


def test_packed_rows_and_padding_reach_the_head_through_our_forward() -> None:
    from train_toys import pack

    model = classifier("gemma2")
    rows = documents(6, 9)
    output = forward(model, pack([[row] for row in rows], 12))
    assert output.softcap is None and output.head is model.score
    for index, row in enumerate(rows):
        expected = classify(model, torch.tensor([row]))[0]
        torch.testing.assert_close(model.score(output.final[index, len(row) - 1]), expected, rtol=1e-4, atol=1e-4)
    assert max(max(row) for row in rows) < VOCABULARY


def test_wf_export_plain_writes_what_transformers_reads(tmp_path: Path) -> None:
    model = classifier("llama")
    save_checkpoint(model, tokenizer(), tmp_path / "checkpoint", CheckpointInfo("classification", spec=SPEC))
    export_plain(tmp_path / "checkpoint", tmp_path / "plain")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain")
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.testing.assert_close(classify(again, ids), without_int8(model, ids), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="is a classifier, it predicts no tokens"):
        refuse_classifier(again, "x", "do something else")
    with pytest.raises(InputError, match="is a classifier"), open_scorer(str(tmp_path / "checkpoint")):
        pass
