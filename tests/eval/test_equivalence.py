"""Equivalence: a model is the same as itself in every mode that is exact, and what was changed is found."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import tokenizer_toys
import torch
from torch import nn
from toy_checkpoints import model as toy_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.eval.equivalence import (
    MODES,
    compare_gradients,
    compare_logits,
    load_model,
    run_n_steps_and_compare,
    set_mode,
    text_batches,
)
from wrinklefree.models.convert import convert_model
from wrinklefree.optim.build import OptimizerConfig
from wrinklefree.quant.ternary import TernarySpec

# Another order of the same float32 sums; a head's logits have a spread of about one.
FLOAT32 = 1 - 1e-6


def model(ternary: bool = True) -> nn.Module:
    torch.manual_seed(0)
    made = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.2,
    ))  # fmt: skip
    if ternary:
        convert_model(made, TernarySpec())
    return made


def batches(count: int = 2) -> list[TokenBatch]:
    found = []
    for seed in range(count):
        ids = torch.randint(0, 48, (2, 20), generator=torch.Generator().manual_seed(seed))
        numbers = torch.zeros(2, 20, dtype=torch.int32)
        numbers[0, 15:] = -1
        labels = ids.masked_fill(numbers < 0, -100)
        labels[:, 0] = -100
        found.append(TokenBatch(ids, labels, torch.arange(20).repeat(2, 1), numbers))
    return found


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("mode", sorted(set(MODES) - {"compile", "bfloat16", "int8"}))
@pytest.mark.parametrize("ternary", [False, True])
def test_exact_modes_are_the_same_in_logits_gradients_and_training(mode: str, ternary: bool) -> None:
    a, b = model(ternary), model(ternary)
    set_mode(a, "sdpa")
    set_mode(b, mode)
    data = batches()
    logits = compare_logits(a, b, data)
    assert logits.positions == 2 * 35 and logits.cosine > FLOAT32 and logits.top1 == 1.0 and logits.max_abs < 1e-3
    gradients = compare_gradients(a, b, data)
    assert gradients.cosine > FLOAT32 and gradients.max_relative < 1e-3 and not gradients.only_one
    assert gradients.losses[0] == pytest.approx(gradients.losses[1], rel=1e-6)
    assert gradients.cosines.keys() == dict(a.named_parameters()).keys()
    trained = run_n_steps_and_compare(a, b, data, 4)
    assert trained.max_loss_difference < 1e-3 and trained.way > 0.999 and trained.logits.cosine > 0.9999
    assert trained.losses[0][0] != trained.losses[2][0], "it must have learned something"


@pytest.mark.slow
def test_the_compiled_model_is_the_same() -> None:
    a, b = model(), model()
    set_mode(a, "plain")
    set_mode(b, "compile")
    assert compare_logits(a, b, batches(1)).cosine > 0.9999
    assert compare_gradients(a, b, batches(1)).cosine > 0.9999


def test_bfloat16_is_alike_but_not_the_same() -> None:
    a, b = model(ternary=False), model(ternary=False)
    set_mode(b, "bfloat16")
    found = compare_logits(a, b, batches())
    assert 0.99 < found.cosine < FLOAT32 and found.max_abs > 1e-3


def test_gradients_are_those_of_the_mean_loss_of_all_batches() -> None:
    a = model()
    data = batches(1)
    found = compare_gradients(a, a, data)
    assert found.cosine == pytest.approx(1.0) and found.max_relative == 0.0
    logits = a(data[0].input_ids[1:], position_ids=data[0].position_ids[1:]).logits
    one_row = [TokenBatch(*(getattr(data[0], n)[1:] for n in ("input_ids", "labels", "position_ids", "document_ids")))]
    expected = nn.functional.cross_entropy(logits[0, :-1].detach(), data[0].input_ids[1, 1:])
    assert compare_gradients(a, a, one_row * 2).losses[0] == pytest.approx(float(expected), rel=1e-5)
    assert all(p.grad is None for p in a.parameters())


def test_one_changed_weight_is_found_by_name() -> None:
    a = model()
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.get_submodule("model.layers.1.mlp.down_proj").weight.neg_()
    data = batches()
    assert compare_logits(a, b, data).cosine < 0.999
    found = compare_gradients(a, b, data)
    assert found.cosine < 0.9 and "layers." in found.parameter
    # A single position out of seventy, in one direction: a mean would hide it.
    c = copy.deepcopy(a)
    with torch.no_grad():
        c.get_submodule("model.embed_tokens").weight[int(data[0].input_ids[1, -1])] += 1.0
    assert compare_logits(a, c, data[:1]).cosine < 0.99


def test_a_loss_without_a_mask_is_found_by_its_gradients() -> None:
    """Logits alike, training not: a parameter that receives no gradient."""
    a, b = model(), model()
    b.get_submodule("model.layers.0.mlp.up_proj").weight.requires_grad_(False)
    found = compare_gradients(a, b, batches())
    assert found.only_one == ("model.layers.0.mlp.up_proj.weight",) and found.cosine > FLOAT32


def test_training_with_another_optimizer_is_the_callers_choice() -> None:
    a, b = model(), model()
    found = run_n_steps_and_compare(a, b, batches(), 3, OptimizerConfig("muon", lr=1e-3))
    assert found.way == pytest.approx(1.0) and found.steps == len(found.losses) == 3


@pytest.mark.parametrize(("mode", "message"), [("egaer", "unknown mode 'egaer'; did you mean 'eager'")])
def test_wrong_modes_and_dropout_are_refused(mode: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        set_mode(model(), mode)
    dropping = model()
    dropping.config.attention_dropout = 0.1
    with pytest.raises(InputError, match="dropout"):
        set_mode(dropping, "plain")


def test_other_vocabularies_are_refused() -> None:
    other = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=50, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    ))  # fmt: skip
    with pytest.raises(InputError, match="48 and 50 logits"):
        compare_logits(model(), other, batches(1))


def test_text_becomes_windows_of_documents(tmp_path: Path) -> None:
    tokenizer_toys.write(tmp_path)
    toy_model().save_pretrained(tmp_path)
    (tmp_path / "text.txt").write_text("A text of some words, and more of them. " * 20, encoding="utf-8")
    loaded, encode = load_model(str(tmp_path))
    found = text_batches(str(tmp_path / "text.txt"), encode, window=32, tokens=100)
    assert sum(batch.input_ids.numel() for batch in found) == pytest.approx(100, abs=32)
    assert all(batch.labels[0, 0] == -100 and bool((batch.labels[0, 1:] >= 0).all()) for batch in found)
    assert compare_logits(loaded, load_model(str(tmp_path))[0], found).max_abs == 0.0


def test_int8_products_are_the_same_but_for_codes_on_a_border() -> None:
    a, b = model(), model()
    set_mode(b, "int8")
    found = compare_logits(a, b, batches())
    # Another order of sums puts an activation that lies between two int8 codes on the other side: in one position here.
    assert found.mean_cosine > 0.9999 and found.cosine > 0.999 and found.top1 == 1.0
