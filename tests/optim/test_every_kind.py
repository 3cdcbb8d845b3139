"""Of every kind of optimizer: state that resumes bit for bit, settings that it reads, settings that it refuses."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from wrinklefree.errors import InputError, MissingDependencyError
from wrinklefree.optim.build import OPTIMIZERS, OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.optim.schedules import set_factors
from wrinklefree.train.checkpoint import load_state, save_state
from wrinklefree.train.companions import build_companions
from wrinklefree.train.compose import refuse_unused
from wrinklefree.train.recipe import BudgetRecipe, Recipe

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(
        kind == "adamw_8bit" and not HAS_BITSANDBYTES, reason="adamw_8bit: not checked, bitsandbytes is not installed"
    ))
    for kind in sorted(OPTIMIZERS)
]  # fmt: skip

_OF_ALL = {"lr", "betas", "eps", "weight_decay", "embedding_lr", "norm_lr", "scale_lr"}
_MUON = {"muon_lr", "muon_scaling", "muon_momentum", "muon_nesterov", "muon_steps", "muon_dtype", "fused"}
_APOLLO = {"apollo_lr", "apollo_update_every", "apollo_scale", "apollo_limiter", "apollo_seed", "fused"}
# The specification: which settings a kind has.
READS = {
    "adamw": {"fused"},
    "adamw_8bit": set(),
    "muon": _MUON,
    "muonclip": _MUON | {"clip_threshold", "clip_alpha", "clip_every"},
    "apollo": _APOLLO | {"apollo_rank"},
    "apollo_mini": _APOLLO,
}  # fmt: skip
# A value for each that is not the default's.
OTHER: dict[str, Any] = {
    "lr": 3e-3, "betas": (0.8, 0.9), "eps": 1e-2, "weight_decay": 0.5, "embedding_lr": 0.3, "norm_lr": 0.3,
    "scale_lr": 0.3, "muon_lr": 0.3, "muon_scaling": "original", "muon_momentum": 0.5, "muon_nesterov": False,
    "muon_steps": 2, "muon_dtype": "bfloat16", "apollo_lr": 0.3, "apollo_rank": 2, "apollo_update_every": 2,
    "apollo_scale": 3.0, "apollo_limiter": 1.0, "apollo_seed": 9,
    "clip_threshold": 7.0, "clip_alpha": 0.2, "clip_every": 3, "fused": False,
}  # fmt: skip


def recipe_of(kind: str, **settings: Any) -> Recipe:
    return Recipe("test", optimizer=OptimizerConfig(kind, **settings), budget=BudgetRecipe(max_steps=1))


class Layer(nn.Module):
    """One parameter of each role; the matrix and the embedding are large enough to be kept in 8 bits."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens = nn.Embedding(70, 64, dtype=dtype)
        self.matrix = nn.Parameter(torch.randn(72, 64, generator=generator).to(dtype))
        self.norm = nn.Parameter(torch.ones(64, dtype=dtype))
        self.weight_scale = nn.Parameter(torch.ones(72))
        self.embed_tokens.weight.data.copy_(torch.randn(70, 64, generator=generator))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        # From the third step on the same again: updates then grow, and a limiter of growth has something to do.
        generator = torch.Generator().manual_seed(min(step, 2))
        set_factors(optimizer, lr=1.0 / (1 + 0.1 * step))
        for parameter in model.parameters():
            # Of very different sizes within a block of 8-bit moments.
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.grad = (noise * noise.abs()).to(parameter.dtype)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_six_steps_equal_three_a_state_on_disk_and_three(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = OptimizerConfig(kind, lr=1e-2, apollo_update_every=4)
    straight, broken, resumed = Layer(dtype), Layer(dtype), Layer(dtype)
    train(straight, build_optimizer(straight, config), 0, 6)
    first = build_optimizer(broken, config)
    train(broken, first, 0, 3)
    state = load_state(save_state(tmp_path, 3, {"model": broken.state_dict(), "optimizer": first.state_dict()}))
    resumed.load_state_dict(state["model"])
    second = build_optimizer(resumed, config)
    second.load_state_dict(state["optimizer"])
    train(resumed, second, 3, 3)
    for (name, left), right in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(left, right), name
        assert not torch.equal(left, dict(Layer(dtype).named_parameters())[name]), "it must have learned something"


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_reads_each_of_its_settings_and_the_others_are_refused(kind: str) -> None:
    recipe = recipe_of(kind)
    names = {field.name for field in fields(OptimizerConfig)} - {"kind"}
    assert names == OTHER.keys() == _OF_ALL.union(*READS.values()) and READS.keys() == OPTIMIZERS.keys()

    def learned(**settings: Any) -> torch.Tensor:
        model = Layer()
        optimizer = build_optimizer(model, OptimizerConfig(kind, **settings))
        train(model, optimizer, 0, 4)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    default = learned()
    for name in sorted(names):
        if name not in _OF_ALL | READS[kind]:
            with pytest.raises(InputError, match=rf"optimizer\.{name}: nothing would read it"):
                refuse_unused(recipe, [f"optimizer.{name}"])
            continue
        refuse_unused(recipe, [f"optimizer.{name}"])
        if name.startswith("clip_"):
            continue  # not in the optimizer: the next test
        changed = learned(**{name: OTHER[name]})
        if name == "fused":  # the same numbers by another kernel
            optimizer = build_optimizer(Layer(), OptimizerConfig(kind, fused=False))
            assert [group["fused"] for group in optimizer.param_groups if "fused" in group].count(True) == 0
        else:
            assert not torch.equal(default, changed), name


def test_the_clips_settings_reach_the_companion() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    ))  # fmt: skip
    clip = {name: value for name, value in OTHER.items() if name.startswith("clip_")}
    (companion,) = build_companions(recipe_of("muonclip", **clip), model, None)  # type: ignore[arg-type]
    assert {f"clip_{name}": getattr(companion, f"_{name}") for name in ("threshold", "alpha", "every")} == clip
    assert build_companions(recipe_of("muon"), model, None) == []  # type: ignore[arg-type]


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="the size of 8-bit moments was not checked: no bitsandbytes")
def test_8_bit_moments_take_a_quarter_of_the_bytes() -> None:
    model = Layer()
    optimizer = build_optimizer(model, OptimizerConfig("adamw_8bit"))
    train(model, optimizer, 0, 1)
    large = sum(p.numel() for p in (model.matrix, model.embed_tokens.weight))
    small = sum(p.numel() for p in (model.norm, model.weight_scale))
    unique = {tensor.data_ptr(): tensor.nbytes for tensor in state_tensors(optimizer)}
    blocks = -(-model.matrix.numel() // 256) + -(-model.embed_tokens.weight.numel() // 256)
    # Two bytes a number and two float32 maxima a block; float32 moments of small tensors; two shared code books.
    assert sum(unique.values()) == 2 * large + 8 * blocks + 8 * small + 2 * 256 * 4


def test_without_bitsandbytes_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'wrinklefree\[lowbit\]'"):
        build_optimizer(Layer(), OptimizerConfig("adamw_8bit"))


def test_t26_an_unknown_optimizer_is_an_error_everywhere() -> None:
    from wrinklefree.train.compose import compose

    with pytest.raises(InputError, match="unknown optimizer 'adamw_4bit'; did you mean 'adamw_8bit'"):
        OptimizerConfig("adamw_4bit")
    for override in ("optimizer=lion", "optimizer.kind=lion"):
        with pytest.raises(InputError, match=r"unknown optimizer( recipe)? 'lion'"):
            compose(["training=stage2_pretrain", override])
    with pytest.raises(InputError, match=r"unknown schedule\.kind 'cosin'; did you mean 'cosine'"):
        compose(["training=stage2_pretrain", "schedule.kind=cosin"])
    with pytest.raises(InputError, match=r"did you mean 'optimizer\.apollo_scale'"):
        compose(["training=stage2_pretrain", "optimizer.apolo_scale=1"])
