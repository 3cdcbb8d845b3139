"""Learning-rate and weight-decay factors as pure functions of the tokens seen, and the sizes that follow from a plan.

Tokens, not steps: a run that is resumed with another batch size, or on another number of machines, is at the same
point of its schedule. Nothing here has state; a factor is a multiple of a group's peak value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch.optim import Optimizer

from wrinklefree.errors import InputError, unknown_name

# Of the peak, where a linear warm-up starts: zero would waste the first step.
_WARMUP_START = 0.01
# bitnet: the second half starts from this share of the first half's peak. Source: arXiv 2402.17764's training tips,
# which pair 1.2e-3 with 8e-4 (1.3B and 3B) and 1.5e-3 with 1e-3 (700M).
_SECOND_STAGE = 2.0 / 3.0
_MIDPOINT = 0.5


def lr_factor(
    kind: str,
    tokens: int,
    total_tokens: int,
    warmup_tokens: int = 0,
    decay_ratio: float = 0.2,
    min_ratio: float = 0.0,
) -> float:
    """Return the learning rate after ``tokens`` of ``total_tokens``, as a share of its peak.

    ``kind``: a name in ``SCHEDULES``. ``warmup_tokens``: linear rise from 1 % of the peak. ``decay_ratio``: share of
    all tokens in which wsd falls. ``min_ratio``: where cosine, linear, wsd and bitnet end, as a share of the peak.

    Raises: InputError for an unknown kind, negative tokens or ratios outside 0 to 1.
    """
    if kind not in SCHEDULES:
        raise unknown_name("schedule", kind, SCHEDULES)
    if total_tokens < 1 or tokens < 0 or not 0 <= warmup_tokens <= total_tokens:
        raise InputError(
            f"schedule {kind}: found {tokens} tokens of {total_tokens} with a warm-up of {warmup_tokens}; "
            "the warm-up must fit into the run"
        )
    if not 0.0 <= min_ratio <= 1.0 or not 0.0 <= decay_ratio <= 1.0:
        raise InputError(f"schedule {kind}: min_ratio {min_ratio} and decay_ratio {decay_ratio} must be from 0 to 1")
    if tokens < warmup_tokens:
        return _WARMUP_START + (1.0 - _WARMUP_START) * tokens / warmup_tokens
    shape = SCHEDULES[kind]
    return shape(min(tokens, total_tokens), total_tokens, warmup_tokens, decay_ratio, min_ratio)


def weight_decay_factor(kind: str, tokens: int, total_tokens: int) -> float:
    """Return the weight decay as a share of its peak: 1, except that bitnet turns it off at the midpoint.

    Source: the training tips of arXiv 2402.17764: decaying latents late in training flips their codes for ever.
    """
    if kind not in SCHEDULES:
        raise unknown_name("schedule", kind, SCHEDULES)
    return 0.0 if kind == "bitnet" and tokens >= _MIDPOINT * total_tokens else 1.0


def set_factors(optimizer: Optimizer, lr: float, weight_decay: float = 1.0) -> None:
    """Set every group's learning rate and weight decay to these shares of its peaks."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * lr
        group["weight_decay"] = group["peak_weight_decay"] * weight_decay


def _constant(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    return 1.0


def _cosine(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    return floor + (1.0 - floor) * _half_cosine(_share(tokens, warmup, total))


def _linear(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    return floor + (1.0 - floor) * (1.0 - _share(tokens, warmup, total))


def _wsd(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    return floor + (1.0 - floor) * (1.0 - _share(tokens, _decay_start(total, warmup, decay), total))


def _wsd_cosine(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    return floor + (1.0 - floor) * _half_cosine(_share(tokens, _decay_start(total, warmup, decay), total))


def _bitnet(tokens: int, total: int, warmup: int, decay: float, floor: float) -> float:
    """One linear fall from 1 to the floor over the run, cut to two thirds from the midpoint on (but not below it)."""
    fallen = 1.0 - (1.0 - floor) * _share(tokens, warmup, total)
    return fallen if tokens < _MIDPOINT * total else max(floor, _SECOND_STAGE * fallen)


# (tokens, total tokens, warm-up tokens, decay ratio, min ratio) -> share of the peak, after the warm-up.
SCHEDULES: dict[str, Callable[[int, int, int, float, float], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
    "wsd_cosine": _wsd_cosine,
    "bitnet": _bitnet,
}


def _share(tokens: int, start: int, end: int) -> float:
    """Return how far ``tokens`` is from start to end, 0 to 1."""
    return min(1.0, max(0.0, (tokens - start) / (end - start))) if end > start else float(tokens >= end)


def _half_cosine(share: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _decay_start(total: int, warmup: int, decay: float) -> int:
    return max(warmup, total - round(decay * total))


def muon_learning_rate(num_parameters: int) -> float:
    """Return a peak learning rate for Muon with the ``original`` scaling: 0.02 at 135M, 0.01 at 350M, 0.005 from 0.6B.

    An empirical rule for ternary training: larger models diverged at the smaller ones' rate. It falls with size in
    steps; the borders are the geometric means of neighbouring sizes (217M and 458M parameters).
    """
    if num_parameters < 1:
        raise InputError(f"muon learning rate: found {num_parameters} parameters")
    if num_parameters < math.sqrt(135e6 * 350e6):
        return 0.02
    return 0.01 if num_parameters < math.sqrt(350e6 * 600e6) else 0.005


@dataclass(frozen=True)
class StepPlan:
    """How long a run is. ``tokens_per_step`` counts all accumulated micro batches of all processes."""

    max_steps: int
    total_tokens: int
    tokens_per_step: int


def plan_steps(
    total_tokens: int | None,
    max_steps: int | None,
    batch_size: int,
    sequence_length: int,
    accumulation: int = 1,
    world_size: int = 1,
) -> StepPlan:
    """Return steps and tokens of a run that ends at the first of the two limits.

    ``batch_size``: sequences of one micro batch of one process. Tokens are rounded down to whole steps.

    Raises: InputError when both limits are None, a size is below one, or the tokens are fewer than a step's.
    """
    sizes = {
        "batch_size": batch_size,
        "sequence_length": sequence_length,
        "accumulation": accumulation,
        "world_size": world_size,
    }
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name}: found {size}, at least 1 is needed")
    if total_tokens is None and max_steps is None:
        raise InputError("total_tokens and max_steps are both null, so training would never end; set one of them")
    per_step = math.prod(sizes.values())
    limits = [] if max_steps is None else [max_steps]
    if total_tokens is not None:
        limits.append(total_tokens // per_step)
    steps = min(limits)
    if steps < 1:
        raise InputError(
            f"total_tokens {total_tokens}, max_steps {max_steps}: less than one step of {per_step} tokens "
            f"({batch_size} sequences x {sequence_length} tokens x {accumulation} accumulated x {world_size} processes)"
        )
    return StepPlan(steps, steps * per_step, per_step)
