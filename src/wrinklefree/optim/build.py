"""From a recipe's optimizer settings and a model to an optimizer with one group for each role.

Every group carries ``peak_lr`` and ``peak_weight_decay`` beside the current values, so that a schedule can set the
current ones from scratch at every step and a checkpoint needs no second place for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.optim.adamw_8bit import adamw_8bit
from wrinklefree.optim.apollo import Apollo
from wrinklefree.optim.groups import DECAYED_ROLES, RoleGroup, parameters_by_role
from wrinklefree.optim.muon import CpuMuon
from wrinklefree.optim.pair import WithAdamW
from wrinklefree.optim.schedules import muon_learning_rate

MUON_SCALINGS = ("match_rms_adamw", "original")


@dataclass(frozen=True)
class OptimizerConfig:
    """Every setting of every optimizer, with its default.

    ``kind``: a name in ``OPTIMIZERS``.
    ``lr``: peak learning rate of AdamW's groups. ``betas``, ``eps``: AdamW's.
    ``weight_decay``: of matrices and embeddings; norms, biases and scales have none.
    ``embedding_lr``, ``norm_lr``, ``scale_lr``: multipliers of ``lr`` for these roles; 0 freezes them (`freeze_still`).
    ``muon_lr``: peak learning rate of Muon's matrices. None takes ``lr`` for ``match_rms_adamw`` (whose updates have
    AdamW's size) and the rule by model size, `schedules.muon_learning_rate`, for ``original``.
    ``muon_scaling``: how a matrix's shape enters its learning rate, see `optim.muon`; values do not carry over.
    ``muon_momentum``, ``muon_nesterov``, ``muon_steps``: momentum, its kind, Newton-Schulz iterations.
    ``muon_dtype``: of these on a CPU; bfloat16 pays only where the processor multiplies it natively (GPUs always do).
    ``clip_threshold``, ``clip_alpha``, ``clip_every``: muonclip's largest attention logit, the queries' share in
    scaling one back (the rest is the keys'), and the steps from one clip to the next; see `models.qk_clip`.
    ``apollo_lr``: peak learning rate of APOLLO's matrices, None takes ``lr``. ``apollo_rank``: of the projections, None
    is a quarter of a matrix's short side (apollo) or 1 (apollo_mini, which has no other). ``apollo_update_every``:
    steps between projections. ``apollo_scale``: None is 1 (apollo) or 128 (apollo_mini); updates are multiplied by its
    root. ``apollo_limiter``: by how much an update may be longer than the one before. ``apollo_seed``: of projections.
    ``fused``: AdamW's one-pass kernel (not of adamw_8bit), five times as fast as torch's own choice on a CPU; None lets
    torch choose.
    """

    kind: str = "adamw"
    lr: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    embedding_lr: float = 1.0
    norm_lr: float = 1.0
    scale_lr: float = 1.0
    muon_lr: float | None = None
    muon_scaling: str = "match_rms_adamw"
    muon_momentum: float = 0.95
    muon_nesterov: bool = True
    muon_steps: int = 5
    muon_dtype: Literal["float32", "bfloat16"] = "float32"
    clip_threshold: float = 100.0
    clip_alpha: float = 0.5
    clip_every: int = 1
    apollo_lr: float | None = None
    apollo_rank: int | None = None
    apollo_update_every: int = 200
    apollo_scale: float | None = None
    apollo_limiter: float = 1.01
    apollo_seed: int = 0
    fused: bool | None = True

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise unknown_name("optimizer", self.kind, OPTIMIZERS)
        if self.muon_scaling not in MUON_SCALINGS:
            raise unknown_name("optimizer.muon_scaling", self.muon_scaling, MUON_SCALINGS)
        for name in (
            "lr",
            "eps",
            "weight_decay",
            "embedding_lr",
            "norm_lr",
            "scale_lr",
            "muon_lr",
            "apollo_lr",
            "apollo_scale",
        ):
            _check(name, getattr(self, name), math.inf)
        for name, value in (("betas", self.betas[0]), ("betas", self.betas[1]), ("muon_momentum", self.muon_momentum)):
            _check(name, value, 1.0)
        if self.muon_dtype not in ("float32", "bfloat16"):
            raise unknown_name("optimizer.muon_dtype", self.muon_dtype, ("float32", "bfloat16"))
        if not 1 <= self.muon_steps < 100:
            raise InputError(f"optimizer.muon_steps: found {self.muon_steps}, allowed is 1 to 99")
        for name in ("clip_every", "apollo_rank", "apollo_update_every"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"optimizer.{name}: found {count}, allowed is 1 or more")
        if not 0.0 < self.clip_threshold < math.inf:
            raise InputError(f"optimizer.clip_threshold: found {self.clip_threshold}, allowed is more than 0")
        if not 0.0 <= self.clip_alpha <= 1.0:
            raise InputError(f"optimizer.clip_alpha: found {self.clip_alpha}, allowed is 0 to 1")
        if not self.apollo_limiter >= 1.0:
            raise InputError(f"optimizer.apollo_limiter: found {self.apollo_limiter}, allowed is 1 or more")
        if self.apollo_seed < 0:
            raise InputError(f"optimizer.apollo_seed: found {self.apollo_seed}, allowed is 0 or more")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe over the trainable parameters of ``model``, each in exactly one group.

    Groups have the keys ``role``, ``lr``, ``weight_decay``, ``peak_lr``, ``peak_weight_decay``.

    Raises: InputError when the model has no trainable parameter.
    """
    roles = parameters_by_role(model)
    if not roles:
        raise InputError("optimizer: the model has no trainable parameter")
    count = sum(parameter.numel() for parameter in model.parameters())
    return OPTIMIZERS[config.kind](roles, config, count)


def freeze_still(model: nn.Module, config: OptimizerConfig) -> None:
    """Ask no gradient for parameters whose rate is 0: it would take time and count in the gradient's norm."""
    for role, group in parameters_by_role(model).items():
        if _multiplier(role, config) == 0.0:
            for parameter in group.parameters:
                parameter.requires_grad_(False)


def _adamw(roles: dict[str, RoleGroup], config: OptimizerConfig, num_parameters: int) -> torch.optim.Optimizer:
    return _adamw_of(_groups(roles, config), config)


def _adamw_8bit(roles: dict[str, RoleGroup], config: OptimizerConfig, num_parameters: int) -> torch.optim.Optimizer:
    return adamw_8bit(_groups(roles, config), config.lr, config.betas, config.eps, config.weight_decay)


def _muon(roles: dict[str, RoleGroup], config: OptimizerConfig, num_parameters: int) -> torch.optim.Optimizer:
    lr = config.muon_lr
    if lr is None:
        lr = config.lr if config.muon_scaling == "match_rms_adamw" else muon_learning_rate(num_parameters)
    muon = CpuMuon(
        [_matrices(roles, lr, config)],
        lr=lr,
        weight_decay=config.weight_decay,
        momentum=config.muon_momentum,
        nesterov=config.muon_nesterov,
        ns_steps=config.muon_steps,
        adjust_lr_fn=config.muon_scaling,
    )
    muon.dtype = getattr(torch, config.muon_dtype)
    return WithAdamW(muon, _rest(roles, config))


def _apollo(roles: dict[str, RoleGroup], config: OptimizerConfig, num_parameters: int) -> torch.optim.Optimizer:
    return _apollo_of(roles, config, config.apollo_rank, per_channel=True, scale=1.0)


def _apollo_mini(roles: dict[str, RoleGroup], config: OptimizerConfig, num_parameters: int) -> torch.optim.Optimizer:
    return _apollo_of(roles, config, 1, per_channel=False, scale=128.0)


def _apollo_of(
    roles: dict[str, RoleGroup], config: OptimizerConfig, rank: int | None, per_channel: bool, scale: float
) -> torch.optim.Optimizer:
    lr = config.lr if config.apollo_lr is None else config.apollo_lr
    apollo = Apollo(
        [_matrices(roles, lr, config)],
        lr=lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        rank=rank,
        per_channel=per_channel,
        scale=scale if config.apollo_scale is None else config.apollo_scale,
        update_every=config.apollo_update_every,
        limiter=config.apollo_limiter,
        seed=config.apollo_seed,
    )
    return WithAdamW(apollo, _rest(roles, config))


OPTIMIZERS: dict[str, Callable[[dict[str, RoleGroup], OptimizerConfig, int], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "muon": _muon,
    "muonclip": _muon,  # the clip goes along with the steps: `train.qk_clip`
    "apollo": _apollo,
    "apollo_mini": _apollo_mini,
}


def _matrices(roles: dict[str, RoleGroup], lr: float, config: OptimizerConfig) -> dict[str, Any]:
    if "matrix" not in roles:
        raise InputError(f"optimizer {config.kind}: no two-dimensional hidden weight is trainable; use adamw")
    return _group(roles["matrix"], lr, config)


def _rest(roles: dict[str, RoleGroup], config: OptimizerConfig) -> torch.optim.Optimizer | None:
    rest = _groups({role: group for role, group in roles.items() if role != "matrix"}, config)
    return _adamw_of(rest, config) if rest else None


def _adamw_of(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=config.fused)


def _groups(roles: dict[str, RoleGroup], config: OptimizerConfig) -> list[dict[str, Any]]:
    return [_group(group, config.lr * _multiplier(role, config), config) for role, group in roles.items()]


def _group(group: RoleGroup, lr: float, config: OptimizerConfig) -> dict[str, Any]:
    decay = config.weight_decay if group.role in DECAYED_ROLES else 0.0
    return {
        "params": group.parameters,
        "role": group.role,
        "lr": lr,
        "peak_lr": lr,
        "weight_decay": decay,
        "peak_weight_decay": decay,
    }


def _multiplier(role: str, config: OptimizerConfig) -> float:
    return {"embedding": config.embedding_lr, "norm": config.norm_lr, "scale": config.scale_lr}.get(role, 1.0)


def _check(name: str, value: float | None, below: float) -> None:
    if value is not None and not 0.0 <= value < below:
        raise InputError(f"optimizer.{name}: found {value}, allowed is 0 or more and below {below}")
