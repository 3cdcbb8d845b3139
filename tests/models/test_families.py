"""Every family against transformers: converted at strength 0, packed, padded, with explicit positions, saved, loaded.

The reference is always the model code of transformers on one unpacked document.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from family_toys import FAMILY_TOYS, VOCABULARY, documents, family_toy, tokenizer
from safetensors.torch import save_file
from torch import Tensor, nn
from train_toys import pack
from transformers.integrations.bitnet import pack_weights

from wrinklefree.errors import InputError
from wrinklefree.models.calibration import CalibrationConfig, calibrate
from wrinklefree.models.calibration.block import BlockRunner
from wrinklefree.models.classification import as_classifier
from wrinklefree.models.convert import convert_model
from wrinklefree.models.exclusion import excluded
from wrinklefree.models.families import FAMILIES, default_subln, family_of
from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.models.io import CheckpointInfo, load_checkpoint, load_source, save_checkpoint
from wrinklefree.objectives.logits_kd import LogitsKD
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.quant.bitlinear import BitLinear, bit_linears, quant_strength
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.plan import count_parameters

NAMES = sorted(FAMILY_TOYS)


def alone(model: Any, document: list[int], **keywords: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(input_ids=torch.tensor([document]), **keywords).logits[0]
    return logits


def converted(name: str, strength: float = 0.0) -> tuple[nn.Module, nn.Module]:
    """The original, and a copy converted without SubLN."""
    original = family_toy(name)
    model = copy.deepcopy(original)
    convert_model(model, TernarySpec("group", 64), strength=strength)
    return original, model


def close(a: Tensor, b: Tensor) -> None:
    """Another order of summation in float32, at logits of size 1 to 30."""
    assert (a - b).abs().max() < 1e-5 * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_at_strength_0_a_converted_model_is_the_original_exactly_and_at_1_it_is_not(name: str) -> None:
    original, model = converted(name)
    (document,) = documents(17)
    expected = alone(original, document)
    torch.testing.assert_close(alone(model, document), expected, rtol=0, atol=0)
    assert len(list(bit_linears(model))) == 7 * 3
    quant_strength(model).value = 1.0
    assert (alone(model, document) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_t2_packed_documents_equal_separate_documents(name: str, strength: float) -> None:
    """Position ids restart and attention stays inside the document and inside the window, whatever the family."""
    _, model = converted(name, strength)
    rows = documents(13, 1, 9)
    packed = forward(model, pack([rows], 26), frozenset({LOGITS})).logits
    assert packed is not None
    start = 0
    for row in rows:
        close(packed[0, start : start + len(row)], alone(model, row))
        start += len(row)


@pytest.mark.parametrize("name", NAMES)
def test_t2_explicit_positions_change_nothing_for_one_and_for_two_dimensions(name: str) -> None:
    _, model = converted(name)
    (document,) = documents(15)
    places = torch.arange(15)
    expected = alone(model, document)
    close(alone(model, document, position_ids=places), expected)
    close(alone(model, document, position_ids=places[None]), expected)
    two: Any = model
    with torch.no_grad():
        both = two(input_ids=torch.tensor([document] * 2), position_ids=places).logits
        ours = forward(model, pack([[document]], 15), frozenset({LOGITS})).logits
    close(both[1], expected)
    assert ours is not None
    close(ours[0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_left_padding_changes_nothing(name: str) -> None:
    _, model = converted(name)
    short, long = documents(8, 14)
    ids = torch.tensor([[3] * 6 + short, long])
    mask = torch.tensor([[0] * 6 + [1] * 8, [1] * 14])
    padded: Any = model
    with torch.no_grad():
        logits = padded(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=-1) - 1).clamp(min=0)).logits
    close(logits[0, 6:], alone(model, short))
    close(logits[1], alone(model, long))


def test_windows_and_caps_matter_in_these_toys() -> None:
    """The tests above could not fail if the toys' windows, caps and rope scalings changed nothing."""
    (document,) = documents(17)
    for name, changes in (
        ("mistral", {"sliding_window": None}),
        ("qwen2-window", {"use_sliding_window": False}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"sliding_window": 64}),
        ("gemma3", {"sliding_window": 64}),
        ("llama-rope-yarn", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    ):
        first, other = family_toy(name), family_toy(name, **changes)
        assert (alone(first, document) - alone(other, document)).abs().max() > 1e-3, (name, changes)


def test_bitnet_keeps_its_norms_and_gets_no_second_ones() -> None:
    original = family_toy("bitnet")
    with pytest.raises(InputError, match="has norms before o_proj and down_proj already"):
        convert_model(copy.deepcopy(original), TernarySpec(), subln="ones")
    _, model = converted("bitnet")
    names = [name for name, _ in model.named_parameters() if "sub_norm" in name]
    assert len(names) == 2 * 3 and names == [n for n, _ in original.named_parameters() if "sub_norm" in n]
    assert default_subln(original.config) == "none" and default_subln(family_toy("llama").config) == "identity"


def test_a_matrix_that_is_ternary_already_keeps_its_step() -> None:
    """Absmean of {-a, 0, a} is smaller than a by the share of zeros; ternarising again must change nothing."""
    original = family_toy("bitnet")
    with torch.no_grad():
        for name, linear in original.named_modules():
            if isinstance(linear, nn.Linear) and name != "lm_head":
                linear.weight.copy_(0.25 * linear.weight.div(0.3).round().clamp(-1, 1))
    model = copy.deepcopy(original)
    convert_model(model, TernarySpec("group", 64), strength=1.0)
    for name, layer in bit_linears(model):
        assert layer.weight_scale is not None
        torch.testing.assert_close(layer.effective_weight(), original.get_submodule(name).weight, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ([], 21),
        (["o_proj"], 18),
        (["layers.1"], 14),
        (["mlp"], 12),
        (["layers.0.mlp", "layers.2.self_attn.q_proj"], 17),
        (["model.layers.1.mlp.down_proj"], 20),
    ],
)
def test_exclusion_is_by_whole_components_and_an_empty_list_excludes_nothing(patterns: list[str], left: int) -> None:
    model = family_toy("llama")
    convert_model(model, TernarySpec(), exclude=patterns)
    names = [name for name, _ in bit_linears(model)]
    assert len(names) == left
    assert not any(excluded(name, patterns) for name in names)


@pytest.mark.parametrize("pattern", ["proj", "layers.1.ml", "o_pro", "layer", "norm", "lm_head", "layers.9"])
def test_an_exclusion_that_matches_nothing_is_refused_not_taken_as_a_substring(pattern: str) -> None:
    with pytest.raises(InputError, match="is no part of any linear's path"):
        convert_model(family_toy("llama"), TernarySpec(), exclude=[pattern])


def test_layer_1_is_not_layer_11_and_excluding_everything_is_refused() -> None:
    assert not excluded("model.layers.11.mlp.up_proj", ["layers.1"])
    assert excluded("model.layers.1.mlp.up_proj", ["layers.1"])
    with pytest.raises(InputError, match="leaves nothing to convert"):
        convert_model(family_toy("llama"), TernarySpec(), exclude=["mlp", "self_attn"])


def test_an_excluded_linear_gets_no_norm_before_it() -> None:
    model = family_toy("llama")
    convert_model(model, TernarySpec(), subln="ones", exclude=["layers.0.o_proj", "layers.0.self_attn.o_proj"][1:])
    names = [name for name, _ in model.named_parameters() if "attn_sub_norm" in name]
    assert names == [f"model.layers.{i}.self_attn.attn_sub_norm.weight" for i in (1, 2)]
    assert not isinstance(model.get_submodule("model.layers.0.self_attn.o_proj"), BitLinear)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("mixtral", "experts"), ("qwen3_moe", "experts"), ("deepseek_v3", "experts"), ("gpt_oss", "experts"),
        ("phi3", "fused"), ("falcon", "fused"), ("gpt_neox", "fused"), ("gpt2", "fused"), ("gemma3", "images"),
        ("gemma9", "did you mean"),
    ],
)  # fmt: skip
def test_mixtures_of_experts_and_fused_projections_are_refused_with_the_reason(model_type: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        family_of(SimpleNamespace(model_type=model_type))


def test_an_encoder_of_a_known_family_is_refused() -> None:
    with pytest.raises(InputError, match="not causal"):
        family_of(SimpleNamespace(model_type="gemma3_text", use_bidirectional_attention=True))
    assert set(FAMILIES) >= {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "bitnet"}


def test_gradients_reach_every_parameter_of_every_family() -> None:
    for name in NAMES:
        _, model = converted(name, 1.0)
        output = forward(model, pack([documents(13, 9)], 24), frozenset({LOGITS}))
        assert output.logits is not None
        output.logits.square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters()), name


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_of_every_family_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model: Any = family_toy(name)
    subln: Any = "none" if name == "bitnet" else "ones"
    exclude = ("layers.1.self_attn",)
    info = CheckpointInfo("convert", spec=TernarySpec("group", 64), subln=subln, exclude=exclude)
    convert_model(model, info.spec, subln=subln, exclude=exclude)
    save_checkpoint(model, tokenizer(), tmp_path / "out", info)
    again, _, found = load_checkpoint(tmp_path / "out")
    assert found == info and len(list(bit_linears(again))) == 7 * 3 - 4
    (document,) = documents(17)
    torch.testing.assert_close(alone(again, document), alone(model, document), rtol=0, atol=0)


@pytest.mark.parametrize("linear_class", ["autobitlinear", "bitlinear"])
def test_packed_bitnet_weights_become_the_floats_they_stand_for(linear_class: str, tmp_path: Path) -> None:
    """Packed by transformers' own function; the scale is a factor for one class and a divisor for the other."""
    original: Any = family_toy("bitnet")
    expected, stored = {}, {}
    for name, tensor in original.state_dict().items():
        if name.endswith("proj.weight"):
            codes = tensor.div(0.3).round().clamp(-1, 1)
            scale = torch.tensor([0.25])
            stored[f"{name}_scale"] = scale
            stored[name] = pack_weights(codes.clone())
            tensor = codes * scale if linear_class == "autobitlinear" else codes / scale
        elif name != "lm_head.weight":
            stored[name] = tensor
        expected[name] = tensor
    settings = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline"}
    found = load_bitnet(original, stored, settings, tmp_path)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    assert not hasattr(found.config, "quantization_config")
    packed = [name for name, tensor in stored.items() if tensor.dtype == torch.uint8]
    assert len(packed) == 7 * 3
    assert all(type(found.get_submodule(name.removesuffix(".weight"))) is nn.Linear for name in packed)


def test_online_bitnet_weights_are_latents_and_convert_to_what_transformers_computes(tmp_path: Path) -> None:
    original: Any = family_toy("bitnet")
    stored = {name: tensor for name, tensor in original.state_dict().items() if name != "lm_head.weight"}
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online"}
    found = load_bitnet(original, stored, settings, tmp_path)
    for name, tensor in original.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=0, atol=0)
    convert_model(found, TernarySpec("tensor"))
    (document,) = documents(11)
    assert (alone(found, document) - alone(original, document)).abs().max() > 1e-2


def load_bitnet(original: Any, stored: dict[str, Tensor], settings: dict[str, str], directory: Path) -> Any:
    tokenizer().save_pretrained(directory)
    config = {**original.config.to_dict(), "quantization_config": settings, "architectures": ["BitNetForCausalLM"]}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, directory / "model.safetensors")
    return load_source(str(directory))[0]


@pytest.mark.parametrize("banned", [None, 5])
def test_capped_logits_reach_the_losses_of_student_and_teacher(banned: int | None) -> None:
    """The chunked head against plain losses on whole, capped logits; values and gradients."""
    student, teacher = family_toy("gemma2", 1), family_toy("gemma2", 2)
    batch = pack([documents(13, 9)], 24)
    manager = ObjectiveManager({"next_token": Term(NextToken()), "logits_kd": Term(LogitsKD(temperature=2.0))})
    manager.banned = banned
    weights = manager.base_weights
    with torch.no_grad():
        taught = forward(teacher, batch, frozenset({LOGITS}))
    counts: dict[str, float] = dict(manager.counts(batch, weights))
    manager.loss(student, batch, weights, counts, taught, Tally()).backward()
    found = [p.grad.clone() for p in student.parameters() if p.grad is not None]
    student.zero_grad()
    mask = batch.labels[:, 1:] != -100
    ours = forward(student, batch, frozenset({LOGITS})).logits
    assert ours is not None and taught.logits is not None
    never = torch.zeros(VOCABULARY)
    if banned is not None:
        never[banned] = -1e4
    a, b = ours[:, :-1][mask] + never, taught.logits[:, :-1][mask] + never
    p, q = (b / 2).log_softmax(-1), (a / 2).log_softmax(-1)
    loss = nn.functional.cross_entropy(a, batch.labels[:, 1:][mask]) + (p.exp() * (p - q)).sum(-1).mean()
    loss.backward()
    for mine, parameter in zip(found, student.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_layers_run_on_their_own_are_the_whole_model(name: str) -> None:
    """Calibration hands each layer what the model would: mask, window, rotary tables of its kind."""
    model: Any = family_toy(name)
    rows = torch.tensor(documents(12, seed=1) + documents(12, seed=2) + documents(12, seed=3))
    runner, x = BlockRunner.of(model, rows, torch.float32)
    for layer in model.model.layers:
        x = runner.all(layer, x)
    with torch.no_grad():
        close(model.model.norm(x), model.model(input_ids=rows).last_hidden_state)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "bitnet", "qwen2-window"])
def test_calibration_fits_other_families_too(name: str) -> None:
    model: Any = family_toy(name)
    rows = torch.tensor([documents(12, seed=i)[0] for i in range(4)])
    report = calibrate(model, rows, TernarySpec("group", 64), CalibrationConfig(epochs=2.0))
    assert len(list(bit_linears(model))) == 7 * 3 and len(report.layers) == 3
    assert torch.isfinite(model(input_ids=rows).logits).all()
    close(alone(model, documents(9)[0], position_ids=torch.arange(9)), alone(model, documents(9)[0]))


@pytest.mark.parametrize("classifies", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_plan_counts_the_parameters_of_every_family(name: str, classifies: bool) -> None:
    model: Any = family_toy(name)
    if classifies:
        model = as_classifier(model, ("a", "b", "c"))
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    assert count_parameters(config) == sum(p.numel() for p in model.parameters())
