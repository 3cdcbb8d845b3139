"""Calibration on toy models: better than plain rounding, equal to its own pieces, repeatable, interruptible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.calibration import CalibrationConfig, calibrate
from wrinklefree.models.calibration.block import BlockRunner
from wrinklefree.models.convert import convert_model
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.ternary import TernarySpec

SPEC = TernarySpec("group", 64)
FAST = CalibrationConfig(epochs=2.0)


def toy() -> Any:
    """A toy whose weights are large enough for its layers to matter."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=128, max_position_embeddings=64, initializer_range=0.15,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def tokens(seed: int = 1, rows: int = 24) -> torch.Tensor:
    return torch.randint(0, 128, (rows, 32), generator=torch.Generator().manual_seed(seed))


def distance(model: Any, sequences: torch.Tensor) -> float:
    """Mean KL from the full-precision toy, on sequences nobody was fitted on."""
    with torch.no_grad():
        teacher = toy()(sequences).logits.log_softmax(-1)
        student = model(sequences).logits.log_softmax(-1)
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def calibrated(config: CalibrationConfig, subln: str = "none", spec: TernarySpec = SPEC) -> Any:
    model = toy()
    calibrate(model, tokens(), spec, config, subln)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("spec", [TernarySpec("tensor"), TernarySpec("row"), SPEC], ids=str)
def test_each_step_brings_the_student_closer(spec: TernarySpec) -> None:
    held_out = tokens(seed=9, rows=8)
    naive = toy()
    convert_model(naive, spec)
    rounded = calibrated(CalibrationConfig(epochs=0.0), spec=spec)
    trained = calibrated(CalibrationConfig(epochs=30.0), spec=spec)
    assert distance(rounded, held_out) < distance(naive, held_out)
    # by how much depends on the processor: it chooses the precision of the products, and the toy is small
    assert distance(trained, held_out) < 0.98 * distance(rounded, held_out)


def test_without_any_fitting_it_is_plain_rounding() -> None:
    model = calibrated(CalibrationConfig(error_feedback=False, fit_scales=False, epochs=0.0))
    naive = toy()
    convert_model(naive, SPEC)
    assert torch.equal(model(tokens()).logits, naive(tokens()).logits)


def test_it_is_repeatable_bit_for_bit() -> None:
    one, two = calibrated(FAST), calibrated(FAST)
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("subln", ["identity", "ones"])
def test_it_fits_models_with_subln(subln: str) -> None:
    model = calibrated(FAST, subln)
    assert "model.layers.0.self_attn.attn_sub_norm.weight" in model.state_dict()
    naive = toy()
    convert_model(naive, SPEC, subln, tokens())  # type: ignore[arg-type]
    held_out = tokens(seed=9, rows=8)
    assert distance(model, held_out) < distance(naive, held_out)


def test_a_stopped_walk_ends_soon_with_a_whole_model() -> None:
    model = toy()
    report = calibrate(model, tokens(), SPEC, CalibrationConfig(epochs=50.0), stopped=lambda: True)
    assert [layer.training_steps for layer in report.layers] == [0, 0]
    assert len(list(bit_linears(model))) == 14
    assert torch.isfinite(model(tokens()).logits).all()


def test_time_bounds_block_training() -> None:
    # Without the bound it would take years, and an order of batches drawn beforehand more memory than there is.
    report = calibrate(toy(), tokens(), SPEC, CalibrationConfig(epochs=1e12, max_seconds=0.5))
    assert all(layer.training_steps < 1e12 for layer in report.layers)


def test_the_gram_matrix_is_that_of_the_projection_inputs() -> None:
    model = toy()
    runner, x = BlockRunner.of(model, tokens(rows=3), torch.float32)
    layer = model.model.layers[0]
    seen: list[torch.Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    runner.all(layer, x)
    handle.remove()
    rows = seen[0].reshape(-1, 128)
    gram = runner.gram(layer, layer.mlp.down_proj, x)
    # The inputs are rounded to int8: a relative error of at most 1 / 254 of each row's peak.
    assert torch.allclose(gram, rows.t() @ rows, rtol=0.0, atol=0.02 * float(gram.diagonal().max()))
    assert torch.allclose(runner.all(layer, x), model.model(tokens(rows=3), output_hidden_states=True).hidden_states[1])


def test_no_text_is_an_error() -> None:
    with pytest.raises(InputError, match="no text"):
        calibrate(toy(), torch.empty(0, 16, dtype=torch.int64), SPEC)
    with pytest.raises(InputError, match="epochs"):
        CalibrationConfig(epochs=-1.0)


class _Interrupted(Exception):
    pass


def test_an_interrupted_walk_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    def interrupt(report: object, of: int) -> None:
        raise _Interrupted

    model = toy()
    with pytest.raises(_Interrupted):
        calibrate(model, tokens(), SPEC, FAST, "identity", interrupt, state=tmp_path / "state")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["layer-000.safetensors", "walk.json"]
    again, whole = toy(), toy()
    resumed = calibrate(again, tokens(), SPEC, FAST, "identity", state=tmp_path / "state")
    report = calibrate(whole, tokens(), SPEC, FAST, "identity")
    for (name, a), (_, b) in zip(again.state_dict().items(), whole.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert [layer.error_trained for layer in resumed.layers] == [layer.error_trained for layer in report.layers]


def test_kept_layers_are_those_of_one_calibration(tmp_path: Path) -> None:
    calibrate(toy(), tokens(), SPEC, FAST, state=tmp_path)
    with pytest.raises(InputError, match=r"another calibration \(differs: text\)"):
        calibrate(toy(), tokens(seed=2), SPEC, FAST, state=tmp_path)
    with pytest.raises(InputError, match=r"differs: spec, config"):
        calibrate(toy(), tokens(), TernarySpec("row"), CalibrationConfig(epochs=1.0), state=tmp_path)
    (tmp_path / "layer-001.safetensors").write_bytes(b"\x08" + bytes(7) + b"{}")
    with pytest.raises(FormatError, match=r"layer-001\.safetensors: is damaged"):
        calibrate(toy(), tokens(), SPEC, FAST, state=tmp_path)
