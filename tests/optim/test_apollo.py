"""APOLLO against a plain float64 statement of its equations, its limits that can be derived, its state, its resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.optim.apollo import Apollo, gaussian_projection
from wrinklefree.optim.build import OptimizerConfig, build_optimizer
from wrinklefree.optim.muon import state_tensors
from wrinklefree.train.checkpoint import load_state, save_state


def gradients(shape: tuple[int, int], steps: int, growth: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(shape, generator=generator) * growth**step for step in range(steps)]


def plain(w: Tensor, given: list[Tensor], mini: bool, rank: int, every: int, lr: float, wd: float) -> Tensor:
    """Algorithm 1 of arXiv 2412.05270, channel by channel in float64."""
    w = w.detach().double()
    turned = w.shape[0] > w.shape[1]
    moments = squares = None
    last = 0.0
    for step, gradient in enumerate(given):
        g = (gradient.T if turned else gradient).double()
        p = gaussian_projection(rank, g.shape[0], seed=step // every).double()
        r = p @ g
        if moments is None or squares is None:
            moments, squares = torch.zeros_like(r), torch.zeros_like(r)
        moments = 0.9 * moments + 0.1 * r
        squares = 0.95 * squares + 0.05 * r**2
        adapted = (moments / (1 - 0.9 ** (step + 1))) / ((squares / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
        update = torch.empty_like(g)
        for j in range(g.shape[1]):
            s = adapted.norm() / r.norm() if mini else adapted[:, j].norm() / r[:, j].norm()
            update[:, j] = s * g[:, j] * math.sqrt(128 if mini else 1)
        if step and update.norm() > 1.01 * last:
            update *= 1.01 * last / update.norm()
        last = float(update.norm())
        w = w - lr * wd * w - lr * (update.T if turned else update)
    return w


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 12)])
@pytest.mark.parametrize("mini", [False, True])
def test_steps_across_a_change_of_projection_are_the_equations(shape: tuple[int, int], mini: bool) -> None:
    w = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    given = gradients(shape, 7, growth=1.1)
    expected = plain(w, given, mini, rank=1 if mini else 3, every=3, lr=0.05, wd=0.2)
    optimizer = Apollo(
        [w], lr=0.05, betas=(0.9, 0.95), weight_decay=0.2, rank=1 if mini else None, per_channel=not mini,
        scale=128.0 if mini else 1.0, update_every=3,
    )  # fmt: skip
    for gradient in given:
        w.grad = gradient
        optimizer.step()
    # Seven steps of a few hundred float32 operations on numbers of size 0.05 x 10.
    assert torch.allclose(w.detach().double(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6)])
def test_with_a_complete_basis_every_channel_is_as_long_as_adamws(shape: tuple[int, int]) -> None:
    """P = I: R is G and R~ is Adam's update, so |U_j| = |G_j| |R~_j| / |R_j| = |Adam's update of channel j|."""
    adam, apollo = (nn.Parameter(torch.zeros(shape)) for _ in range(2))
    options: dict[str, Any] = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0.0}
    pair = [
        torch.optim.AdamW([adam], **options),
        Apollo([apollo], **options, rank=99, limiter=1e9, projection=lambda rank, size, seed: torch.eye(rank, size)),
    ]
    channels = 0 if shape[0] < shape[1] else 1
    for gradient in gradients(shape, 4):
        before = adam.detach().clone(), apollo.detach().clone()
        for parameter, optimizer in zip((adam, apollo), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
        moves = [new.detach() - old for new, old in zip((adam, apollo), before, strict=True)]
        assert torch.allclose(moves[0].norm(dim=channels), moves[1].norm(dim=channels), rtol=1e-5)
        assert torch.allclose(torch.nn.functional.cosine_similarity(moves[1], -gradient, dim=channels), torch.ones(10))
        assert not torch.allclose(moves[0], moves[1], rtol=0.1)


def test_lower_rank_means_shorter_updates_by_the_root_of_its_share() -> None:
    """At the first step R~ is the sign of R: r entries of one in each channel, where Adam has m; |U| = sqrt(r / m)."""
    w = nn.Parameter(torch.zeros(64, 4096))
    w.grad = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    Apollo([w], lr=1.0, rank=16).step()
    # |R_j| varies around |G_j| with 1 / sqrt(2 r) = 18 %; E(1 / |R_j|) is up to 5 % above 1 / E|R_j| at r = 16.
    assert float(w.detach().norm()) == pytest.approx(math.sqrt(16 / 64) * math.sqrt(64 * 4096), rel=0.08)


def test_projection_has_the_stated_variance_and_depends_on_the_seed_alone() -> None:
    drawn = gaussian_projection(64, 1024, seed=3)
    assert float(drawn.mul(8).std()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drawn, gaussian_projection(64, 1024, seed=3))
    assert not torch.equal(drawn, gaussian_projection(64, 1024, seed=4))


def test_norm_growth_is_limited_and_a_zero_gradient_does_not_freeze_it() -> None:
    w = nn.Parameter(torch.zeros(8, 8))
    optimizer = Apollo([w], lr=1.0, rank=2, per_channel=False)
    moves = []
    for gradient in [torch.zeros(8, 8), *gradients((8, 8), 5)]:
        before = w.detach().clone()
        optimizer.param_groups[0]["scale"] *= 1e4
        w.grad = gradient
        optimizer.step()
        moves.append(float((w.detach() - before).norm()))
    assert moves[0] == 0.0 and moves[1] > 100
    # Unlimited, each would be about a hundred times as long as the one before.
    assert moves[1:] == pytest.approx([moves[1] * 1.01**k for k in range(5)], rel=1e-4)


@pytest.mark.parametrize(("kind", "rank"), [("apollo", 4), ("apollo_mini", 1)])
def test_state_holds_two_small_moments_and_three_scalars(kind: str, rank: int) -> None:
    model = nn.Linear(16, 40, bias=False)
    optimizer = build_optimizer(model, OptimizerConfig(kind))
    model.weight.grad = torch.ones(40, 16)
    optimizer.step()
    assert sum(tensor.numel() for tensor in state_tensors(optimizer)) == 2 * rank * 40 + 1
    assert {k: v for k, v in optimizer.state[model.weight].items() if not isinstance(v, Tensor)} == {
        "step": 1,
        "seed": 0,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["apollo", "apollo_mini"])
def test_resuming_inside_an_interval_is_the_uninterrupted_run(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    config = OptimizerConfig(kind, lr=1e-2, apollo_update_every=5)
    given = gradients((12, 20), 9)

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(20, 12).to(dtype)
        return model, build_optimizer(model, config)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: list[Tensor]) -> None:
        for gradient in steps:
            for parameter in model.parameters():
                parameter.grad = (gradient if parameter.ndim == 2 else gradient[:, 0]).to(dtype)
            optimizer.step()

    straight = build()
    train(*straight, given)
    first = build()
    train(*first, given[:7])
    saved = save_state(tmp_path, 7, {"model": first[0].state_dict(), "optimizer": first[1].state_dict()})
    second, state = build(), load_state(saved)
    second[0].load_state_dict(state["model"])
    second[1].load_state_dict(state["optimizer"])
    train(*second, given[7:])
    for (name, left), right in zip(straight[0].named_parameters(), second[0].parameters(), strict=True):
        assert torch.equal(left, right), name


@pytest.mark.parametrize("settings", [{}, {"per_channel": False, "rank": 1, "scale": 128.0}])
def test_a_regression_converges_as_it_does_with_adamw(settings: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(256, 24, generator=generator)
    target = x @ torch.randn(24, 16, generator=generator)

    def final(kind: type[torch.optim.Optimizer], **options: Any) -> float:
        layer = nn.Linear(24, 16, bias=False)
        nn.init.zeros_(layer.weight)
        optimizer = kind(layer.parameters(), lr=0.03, **options)
        for step in range(300):
            optimizer.param_groups[0]["lr"] = 0.03 * (1 - step / 300)
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    start = float(target.square().mean())
    assert final(Apollo, update_every=20, **settings) < max(1e-2 * start, 2 * final(torch.optim.AdamW))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"apollo_rank": 0}, r"optimizer\.apollo_rank: found 0"),
        ({"apollo_update_every": 0}, r"optimizer\.apollo_update_every"),
        ({"apollo_scale": -1.0}, r"optimizer\.apollo_scale"),
        ({"apollo_limiter": 0.9}, r"optimizer\.apollo_limiter"),
        ({"apollo_seed": -1}, r"optimizer\.apollo_seed"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimizerConfig("apollo", **settings)
