"""The plan: kept activations against what autograd really keeps, optimizer states against real ones, GPUs that fit."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import toy_model
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from wrinklefree.cli.main import main
from wrinklefree.data.batch import TokenBatch
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import forward
from wrinklefree.optim.build import OPTIMIZERS, OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.quant.ternary import TernarySpec
from wrinklefree.train.footprint import Shape, activation_bytes, memory_bytes, optimizer_bytes
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
