"""The plan: kept activations against what autograd really keeps, optimizer states against real ones, GPUs that fit."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_toys import arguments, write_toy
from train_toys import toy_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from wrinklefree.cli.main import main
from wrinklefree.data.batch import TokenBatch
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.optim.build import OPTIMIZERS, OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.compose import compose
from wrinklefree.train.footprint import activation_bytes, memory_bytes, optimizer_bytes, teacher_bytes
from wrinklefree.train.gpus import GPUS, gpu_named
from wrinklefree.train.plan import plan
from wrinklefree.train.recipe import (
    BatchRecipe,
    BudgetRecipe,
    DataRecipe,
    DeviceRecipe,
    ModelRecipe,
    Recipe,
)
from wrinklefree.train.shape import Shape
from wrinklefree.train.stage import train
from wrinklefree.train.storage import disk_bytes

ROWS, LENGTH = 2, 64


def student(kind: str, **changes: Any) -> Any:
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": 64, **changes}
    if kind != "gemma3":
        return toy_model(0, kind, **sizes)
    config = Gemma3TextConfig(
        **sizes, num_attention_heads=4, num_key_value_heads=2, head_dim=32, layer_types=["full_attention"] * 2,
    )  # fmt: skip
    return Gemma3ForCausalLM(config)


def kept(model: Any, autocast: bool) -> int:
    """Bytes of the storages that autograd keeps for the backward of one forward, but for the parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage._cdata] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    batch = TokenBatch(ids, ids, torch.arange(LENGTH).expand(ROWS, -1), torch.zeros(ROWS, LENGTH, dtype=torch.int32))
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), context:
        forward(model, batch)
    return sum(size for storage, (size, _) in seen.items() if storage not in own)


def recipe_for(dtype: Any = "float32", precision: Any = "32-true", subln: Any = "ones", **changes: Any) -> Recipe:
    return Recipe(
        "test",
        model=ModelRecipe(source="x", dtype=dtype, subln=subln),
        data=DataRecipe(sequence_length=LENGTH),
        batch=BatchRecipe(ROWS, 1),
        budget=BudgetRecipe(max_steps=10),
        device=DeviceRecipe(accelerator="cpu", precision=precision),
        **changes,
    )


@pytest.mark.parametrize("subln", ["ones", "none"])
@pytest.mark.parametrize("numbers", ["float32", "bfloat16", "bf16-mixed"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3"])
def test_kept_activations_are_what_autograd_keeps(kind: str, numbers: str, subln: Any) -> None:
    model = student(kind).to(torch.bfloat16 if numbers == "bfloat16" else torch.float32)
    convert_model(model, TernarySpec(), subln=subln)
    model.train()
    dtype = "bfloat16" if numbers == "bfloat16" else "float32"
    recipe = recipe_for(dtype, "bf16-mixed" if numbers == "bf16-mixed" else "32-true", subln)
    estimate = activation_bytes(recipe, Shape.of(model.config.to_dict()))
    # In float32 each tensor is counted; bfloat16's mix of casts is described by a few averages.
    assert estimate == pytest.approx(kept(model, numbers == "bf16-mixed"), rel=0.06 if numbers == "float32" else 0.2)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_optimizer_states_have_the_planned_size(kind: str) -> None:
    if kind == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="the size of 8-bit moments was not checked")
    model = student("qwen3")
    optimizer = build_optimizer(model, OptimizerConfig(kind))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state_tensors(optimizer)}
    projections = getattr(getattr(optimizer, "_parts", [None])[0], "_kept", {})
    real = sum(unique.values()) + sum(drawn.nbytes for _, drawn in projections.values())
    estimate = optimizer_bytes(OptimizerConfig(kind), Shape.of(model.config.to_dict()), 4)
    # Beside it: step counters, and two code books of 8-bit moments.
    assert estimate == pytest.approx(real, rel=0.01)


def test_shapes_count_the_parameters_of_every_family() -> None:
    for kind in ("llama", "qwen3", "gemma3"):
        model = student(kind)
        assert Shape.of(model.config.to_dict()).parameters == sum(p.numel() for p in model.parameters())


def test_parts_follow_the_recipe() -> None:
    shape = Shape.of(student("llama").config.to_dict())
    base = memory_bytes(recipe_for(), shape)
    assert base["teacher"] == 0 and base["weights"] > 4 * shape.parameters
    doubled = memory_bytes(replace(recipe_for(), batch=BatchRecipe(2 * ROWS, 1)), shape)
    assert doubled["activations"] > 1.5 * base["activations"] and doubled["weights"] == base["weights"]
    accumulated = memory_bytes(replace(recipe_for(), batch=BatchRecipe(ROWS, 2)), shape)
    assert accumulated["gradients"] == accumulated["weights"]
    sharded = replace(recipe_for(), device=DeviceRecipe(devices=2, strategy="fsdp"))
    assert memory_bytes(sharded, shape)["weights"] == base["weights"] / 2


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    student("qwen3").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_on_gpus_the_micro_batch_fits_and_the_step_stays(saved: Path) -> None:
    recipe = replace(recipe_for(), batch=BatchRecipe(8, 16), model=ModelRecipe(source=str(saved)))
    found = plan(recipe, [replace(GPUS["L4"], memory_gib=memory, name=f"{memory}") for memory in (0.1, 0.9, 22.0)])
    none, some, all_at_once = found.gpus
    assert none.micro_batch is None and all_at_once.micro_batch == 128 and all_at_once.accumulation == 1
    assert some.micro_batch is not None and some.accumulation is not None and 1 <= some.micro_batch <= 128
    assert some.micro_batch * some.accumulation == 128
    assert some.memory_gib <= 0.9 and found.run.step_tokens == 128 * LENGTH
    tokens = recipe.run_budget.tokens
    assert tokens is not None and some.seconds is not None and some.dollars is not None
    assert some.seconds == pytest.approx(tokens * found.flops_per_token / (0.3 * 30.3e12))
    assert some.dollars == pytest.approx(some.seconds / 3600 * 0.80)
    mixed = replace(recipe, device=DeviceRecipe(precision="bf16-mixed", devices=2))
    faster = plan(mixed, [GPUS["L4"]]).gpus[0]
    assert faster.tokens_per_second == pytest.approx(2 * 121 / 30.3 * some.tokens_per_second)


def test_the_verb_shows_a_table_and_takes_a_price(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "training=stage2_pretrain", f"model={saved}", "--gpu", "h100", "--gpu", "A40"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "H100" in printed and "A40" in printed and "indicative" in printed
    assert main([*words, "--price", "2", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["gpu"]["dollars_per_hour"] for each in found["gpus"]] == [2.0, 2.0]
    assert found["gpus"][0]["dollars"] == pytest.approx(found["gpus"][0]["seconds"] / 3600 * 2)
    for wrong, message in (
        (["plan"], "name a recipe"),
        ([*words[:3], "--gpu", "H1000"], "did you mean"),
        ([*words, "--utilisation", "2"], "utilisation"),
        (["plan", "training=stage2_pretrain", "model=/no/such/model"], "no such model"),
    ):
        assert main(wrong) == 2
        assert message in capsys.readouterr().err


def test_every_gpu_is_declared_once_with_sane_figures() -> None:
    assert gpu_named("rtx4090").name == "RTX4090"
    for name, gpu in GPUS.items():
        assert name == gpu.name and 10 < gpu.memory_gib < 288 and gpu.bf16_tflops > gpu.fp32_tflops > 1
        assert (gpu.dollars_per_hour is None) == (gpu.seller is None)


# A notebook's batch sizes, at 512 tokens a row; it has a SmolLM2-135M and a Qwen3-4B and does not say for which of
# them, nor how memory was measured. The small one is planned in mixed precision, the large one in bfloat16.
SMOLLM2 = Shape(hidden=576, width=1536, layers=30, heads=9, keys=3, head=64, vocabulary=49152, tied=True)
QWEN3_4B = Shape(
    hidden=2560, width=9728, layers=36, heads=32, keys=8, head=128, vocabulary=151936, tied=True, qk_norm=True
)


def reported(training: str, micro_batch: int, accumulation: int, *more: str) -> Recipe:
    return compose([
        f"training={training}", f"batch.micro_batch={micro_batch}", f"batch.accumulation={accumulation}",
        "data.sequence_length=512", *more,
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("training", "gpu", "micro_batch", "accumulation"),
    [
        ("stage1_9_layerwise", "A100-80GB", 8, 8), ("stage1_9_layerwise", "H100", 8, 8),
        ("stage1_9_layerwise", "A100-40GB", 2, 32), ("stage1_9_layerwise", "RTX4090", 1, 64),
        ("stage2_pretrain", "A100-80GB", 16, 4), ("stage2_pretrain", "A100-40GB", 4, 16),
        ("stage2_pretrain", "RTX4090", 2, 32), ("stage2_pretrain", "A40", 32, 1),
    ],
)  # fmt: skip
def test_the_batch_sizes_that_were_reported_to_run_fit_in_the_plan(
    training: str, gpu: str, micro_batch: int, accumulation: int
) -> None:
    recipe = reported(training, micro_batch, accumulation, "device.precision=bf16-mixed")
    needed = sum(memory_bytes(recipe, SMOLLM2, gpu=True).values()) / 2**30
    assert needed < GPUS[gpu].memory_gib


def test_a_4b_student_with_its_teacher_needs_the_80_gb_that_were_reported() -> None:
    """Reported: about 60 GB at 8 sequences of 512: teacher 8, student 8, 8-bit Adam's state 4, activations about 40."""
    words = ("stage1_9_layerwise", 8, 8, "optimizer=adamw_8bit", "model.dtype=bfloat16")
    recipe = reported(*words)  # type: ignore[arg-type]
    parts = {name: size / 1e9 for name, size in memory_bytes(recipe, QWEN3_4B, gpu=True).items()}
    assert parts["teacher"] == pytest.approx(8, rel=0.05) and parts["weights"] == pytest.approx(8, rel=0.05)
    # Two bytes a parameter here; the notes' 4 is one byte each.
    assert parts["optimizer"] == pytest.approx(8, rel=0.1)
    # More than the 60, because every hidden state and both tables' gradients are counted; with layers computed again
    # it is less, so the reported run lies between.
    again = reported(*words, "device.gradient_checkpointing=true")  # type: ignore[arg-type]
    least = sum(memory_bytes(again, QWEN3_4B, gpu=True).values()) / 1e9
    assert parts["weights"] + parts["optimizer"] + 8 > 24  # and gradients: no batch size fits an RTX 4090
    assert least < 60 < sum(parts.values()) < 110


def test_disk_is_what_a_run_leaves(tmp_path: Path) -> None:
    toy = write_toy(tmp_path)
    recipe = compose([*arguments(toy, "stage2_pretrain"), "checkpoint.keep_last=2", "checkpoint.save_every=1"])
    train(recipe, out=tmp_path / "run")
    expected = disk_bytes(recipe, Shape.of(json.loads((toy / "model" / "config.json").read_text())))
    assert (tmp_path / "run" / "model.safetensors").stat().st_size == pytest.approx(expected["checkpoint"], rel=0.05)
    # Between two steps there are ``keep_last``; while one is written, one more.
    left = sum(path.stat().st_size for path in (tmp_path / "run" / "state").glob("*/tensors.safetensors"))
    assert left == pytest.approx(expected["states"] * 2 / 3, rel=0.05)


def test_a_teacher_of_another_size_and_in_fewer_bits() -> None:
    taught = compose(["training=quick_distill"])
    own, large = (sum(memory_bytes(taught, SMOLLM2, teacher=shape).values()) for shape in (None, QWEN3_4B))
    assert large - own == pytest.approx(4 * (QWEN3_4B.parameters - SMOLLM2.parameters), rel=0.06)
    reduced = compose(["training=quick_distill", "teacher.weights=nf4"])
    matrices = QWEN3_4B.layers * QWEN3_4B.layer_weights
    tables = 4 * (QWEN3_4B.parameters - matrices)
    assert teacher_bytes(reduced, QWEN3_4B) == pytest.approx(matrices * 0.53125 + tables)
    # It is loaded in full before.
    assert sum(memory_bytes(reduced, SMOLLM2, teacher=QWEN3_4B).values()) > 4 * QWEN3_4B.parameters


def test_a_cap_on_dollars_buys_tokens(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "training=stage2_pretrain", f"model={saved}", "--gpu", "H100", "--gpu", "A40"]
    assert main([*words, "--dollars", "10", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    priced, unpriced = found["gpus"]
    assert found["dollars_cap"] == 10 and unpriced["tokens_for_cap"] is None
    assert priced["tokens_for_cap"] == pytest.approx(priced["tokens_per_second"] * 10 / 3.95 * 3600)
    assert found["disk_bytes"]["states"] > found["disk_bytes"]["checkpoint"] and found["host_bytes"]["loading"] > 0
    assert main([*words, "--dollars", "1e9"]) == 0
    assert "Within $1,000,000,000: H100." in capsys.readouterr().out
    assert main([*words, "--dollars", "0.0001"]) == 0
    assert "No GPU with a price finishes within" in capsys.readouterr().out
