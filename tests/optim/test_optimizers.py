"""Optimizers against their equations and promises.

Compared: parameter groups with a walk over the model; one AdamW and one Muon step with the published equations
written out here; our float32 Muon with torch's (bfloat16) one; a run with the same run saved and loaded half-way.
"""

from __future__ import annotations

import importlib.util
import math

import pytest
import torch
from torch import nn

from wrinklefree.errors import InputError
from wrinklefree.optim.build import OPTIMIZERS, OptimizerConfig, build_optimizer, freeze_still
from wrinklefree.optim.groups import parameters_by_role
from wrinklefree.optim.muon import CpuMuon, orthogonalize, state_tensors
from wrinklefree.optim.schedules import set_factors
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.ternary import TernarySpec

# bitsandbytes is an extra of its own; without it nothing about adamw_8bit is checked.
KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(
        kind == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None, reason="adamw_8bit: no bitsandbytes"
    ))
    for kind in sorted(OPTIMIZERS)
]  # fmt: skip


class Toy(nn.Module):
    """Every kind of parameter: ternary layer with row and group scales, plain linear, norms, bias, conv, head."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        strength = QuantStrength()
        self.embed_tokens = nn.Embedding(32, 16)
        self.up = BitLinear(16, 24, True, TernarySpec("row"), strength)
        self.down = BitLinear(24, 16, False, TernarySpec("group", 64), strength)
        self.up.set_scale(torch.full((24,), 0.1))
        self.down.set_scale(torch.full((16, 1), 0.1))
        self.plain = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.lm_head = nn.Linear(16, 32, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, 0.1, generator=generator).abs_().add_(0.02)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed_tokens(ids)
        x = x + self.down(torch.tanh(self.up(self.norm(x)))) + self.plain(x)
        return self.lm_head(x + self.conv(x.transpose(1, 2)).transpose(1, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, steps: int) -> None:
    for step in range(first, first + steps):
        ids = torch.randint(0, 32, (2, 8), generator=torch.Generator().manual_seed(step))
        set_factors(optimizer, lr=1.0 / (1 + step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_in_exactly_one_group(kind: str, tied: bool) -> None:
    model = Toy(tied)
    model.plain.weight.requires_grad_(False)
    optimizer = build_optimizer(model, OptimizerConfig(kind))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    expected = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(expected)


@pytest.mark.parametrize("tied", [True, False])
def test_roles_of_the_toy(tied: bool) -> None:
    found = {role: set(group.names) for role, group in parameters_by_role(Toy(tied)).items()}
    assert found == {
        "matrix": {"up.weight", "down.weight", "plain.weight"},
        "embedding": {"embed_tokens.weight", "conv.weight"} | (set() if tied else {"lm_head.weight"}),
        "norm": {"up.bias", "plain.bias", "norm.weight", "norm.bias", "conv.bias"},
        "scale": {"up.weight_scale", "down.weight_scale"},
    }


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_roles_of_a_hugging_face_model(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, family)
    config = kind.config_class(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=64, head_dim=8, tie_word_embeddings=True,
    )  # fmt: skip
    model = kind(config)
    roles = parameters_by_role(model)
    assert roles["embedding"].names == ["model.embed_tokens.weight"]
    assert len(roles["matrix"].names) == 2 * 7
    assert all("norm" in name for name in roles["norm"].names)
    assert sum(len(g.parameters) for g in roles.values()) == len(list(model.parameters()))


def test_decay_and_multipliers_per_role() -> None:
    config = OptimizerConfig(
        "muon", lr=1e-3, weight_decay=0.1, norm_lr=3.0, scale_lr=0.3, embedding_lr=0.5, muon_lr=0.02
    )
    groups = {group["role"]: group for group in build_optimizer(Toy(), config).param_groups}
    assert {r: g["lr"] for r, g in groups.items()} == pytest.approx(
        {"matrix": 0.02, "embedding": 5e-4, "norm": 3e-3, "scale": 3e-4}
    )
    assert {r: g["weight_decay"] for r, g in groups.items()} == {
        "matrix": 0.1,
        "embedding": 0.1,
        "norm": 0.0,
        "scale": 0.0,
    }


def test_a_role_without_a_rate_asks_no_gradient_and_has_no_state() -> None:
    model = Toy(tied=True)
    config = OptimizerConfig("adamw", embedding_lr=0.0)
    freeze_still(model, config)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == [
        "embed_tokens.weight",
        "conv.weight",
    ]
    assert "embedding" not in [group["role"] for group in build_optimizer(model, config).param_groups]


@pytest.mark.parametrize(
    ("scaling", "muon_lr", "expected"),
    [("match_rms_adamw", None, 3e-4), ("original", None, 0.02), ("original", 0.5, 0.5), ("match_rms_adamw", 0.5, 0.5)],
)
def test_muon_learning_rate_follows_its_scaling(scaling: str, muon_lr: float | None, expected: float) -> None:
    config = OptimizerConfig("muon", lr=3e-4, muon_scaling=scaling, muon_lr=muon_lr)
    assert build_optimizer(Toy(), config).param_groups[0]["lr"] == expected


def test_one_adamw_step_is_the_equation() -> None:
    # arXiv 1711.05101, algorithm 2, with bias correction at t = 1: m^ = g, v^ = g^2.
    model, config = Toy(), OptimizerConfig(lr=0.01, weight_decay=0.1, eps=1e-6)
    optimizer = build_optimizer(model, config)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, first=0, steps=1)
    roles = {id(p): g["role"] for g in optimizer.param_groups for p in g["params"]}
    for old, new in zip(before, model.parameters(), strict=True):
        g = new.grad
        assert g is not None
        decay = 0.1 if roles[id(new)] in ("matrix", "embedding") else 0.0
        expected = old * (1 - 0.01 * decay) - 0.01 * g / (g.abs() + 1e-6)
        # A few float32 roundings of values below one.
        assert torch.allclose(new, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
@pytest.mark.parametrize("scaling", ["original", "match_rms_adamw"])
def test_two_muon_steps_are_the_equations(shape: tuple[int, int], scaling: str) -> None:
    generator = torch.Generator().manual_seed(1)
    w = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = CpuMuon([w], lr=0.1, weight_decay=0.2, momentum=0.9, adjust_lr_fn=scaling)
    expected, m = w.detach().double(), torch.zeros(shape, dtype=torch.float64)
    for _ in range(2):
        w.grad = torch.randn(shape, generator=generator)
        g = w.grad.double()
        m = m + 0.1 * (g - m)
        u = g + 0.9 * (m - g)
        # Newton-Schulz moves singular values only, so through the singular value decomposition it is a polynomial.
        left, s, right = torch.linalg.svd(u / u.norm(), full_matrices=False)
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        ratio = math.sqrt(max(1, shape[0] / shape[1])) if scaling == "original" else 0.2 * math.sqrt(max(shape))
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * ratio * (left * s) @ right
        optimizer.step()
    assert torch.allclose(w.detach().double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_orthogonalized_matrices_have_singular_values_near_one(dtype: torch.dtype) -> None:
    # The quintic does not converge to one; from 0.68 up to 1.21 is its attracting interval.
    matrix = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
    u = orthogonalize(matrix, (3.4445, -4.775, 2.0315), 5, 1e-7, dtype)
    s = torch.linalg.svdvals(u.float())
    assert u.dtype == dtype and s.min() > 0.6 and s.max() < 1.3


def test_bfloat16_muon_is_torchs_own() -> None:
    ours, theirs = (nn.Parameter(torch.ones(20, 12)) for _ in range(2))
    muon = CpuMuon([ours], lr=0.1)
    muon.dtype = torch.bfloat16
    for step in range(3):
        for parameter, optimizer in ((ours, muon), (theirs, torch.optim.Muon([theirs], lr=0.1))):
            parameter.grad = torch.randn(20, 12, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        # torch's rounds its inputs in another order; its momentum is made anew in this loop, so is ours.
        muon.state.clear()
    assert (ours - theirs).abs().max() < 3e-3


def test_float32_muon_agrees_with_torch() -> None:
    ours, theirs = (nn.Parameter(torch.ones(20, 12)) for _ in range(2))
    pair = [CpuMuon([ours], lr=0.1), torch.optim.Muon([theirs], lr=0.1)]
    for step in range(3):
        for p in (ours, theirs):
            p.grad = torch.randn(20, 12, generator=torch.Generator().manual_seed(step))
        for optimizer in pair:
            optimizer.step()
    # bfloat16 has 8 bits: each of torch's 15 matrix products errs by up to 2^-8 of values near 0.2, times lr 0.1.
    assert (ours - theirs).abs().max() < 3e-3
    assert (ours - 1).abs().max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers_lower_the_loss(kind: str) -> None:
    model = Toy()
    ids = torch.arange(16).reshape(2, 8)

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()))

    before, optimizer = loss(), build_optimizer(model, OptimizerConfig(kind, lr=1e-2))
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()
    assert loss() < 0.7 * before


def test_muon_keeps_one_buffer_for_a_matrix_and_two_for_the_rest() -> None:
    model = Toy()
    optimizer = build_optimizer(model, OptimizerConfig("muon"))
    train(model, optimizer, 0, 1)
    sizes = {g["role"]: sum(p.numel() for p in g["params"]) for g in optimizer.param_groups}
    held = sum(tensor.numel() for tensor in state_tensors(optimizer) if tensor.ndim)
    assert held == sizes["matrix"] + 2 * (sizes["embedding"] + sizes["norm"] + sizes["scale"])


def test_muon_without_anything_else() -> None:
    model = nn.Linear(4, 4, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig("muon"))
    model.weight.grad = torch.randn(4, 4)
    before = model.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "adam"}, "unknown optimizer 'adam'; did you mean 'adamw'"),
        ({"kind": "apolo"}, "unknown optimizer 'apolo'; did you mean 'apollo'"),
        ({"muon_scaling": "orignal"}, "did you mean 'original'"),
        ({"lr": -1.0}, r"optimizer\.lr: found -1\.0"),
        ({"lr": float("nan")}, r"optimizer\.lr"),
        ({"betas": (0.9, 1.0)}, r"optimizer\.betas"),
        ({"muon_momentum": 1.5}, r"optimizer\.muon_momentum"),
        ({"muon_steps": 0}, r"optimizer\.muon_steps"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig(**settings)


def test_nothing_to_train_is_refused() -> None:
    model = Toy()
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        build_optimizer(model, OptimizerConfig())
    model.norm.requires_grad_(True)
    with pytest.raises(InputError, match="no two-dimensional"):
        build_optimizer(model, OptimizerConfig("muon"))
