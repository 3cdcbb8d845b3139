"""Columns that stay in full precision while a model gets used to ternary weights: which ones, how many, how long.

A column of a weight ``[O, I]`` is what one input feature is multiplied with. The share k of the columns with the
highest scores stays as it is; k falls over a run, to 0 for a model that is to be exported.

Shape letters: O output features (rows), I input features (columns).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.quant.ternary import TernarySpec, grouped, storable

Annealing = Literal["linear", "cosine"]
ANNEALINGS: tuple[Annealing, ...] = ("linear", "cosine")


def rest_scale(weight: Tensor, kept: Tensor, spec: TernarySpec) -> Tensor:
    """Return mean|w| over the columns of ``weight [O, I]`` that are not ``kept [I]``, per tensor, row or group.

    The kept columns are the largest, and would raise the threshold of all others.
    Shape and rounding are those of `absmean_scale`.
    """
    magnitude = weight.detach().abs().float().masked_fill_(kept, 0.0)
    rest = (~kept).float()[None]
    if spec.granularity == "group":
        magnitude, rest = grouped(magnitude, spec), grouped(rest, spec)
    members = rest.sum(dim=-1).clamp_(min=1.0)  # of a group that is kept whole nothing is left to scale
    if spec.granularity == "tensor":
        return storable((magnitude.sum() / (members * weight.shape[0])).reshape(1), spec)
    return storable(magnitude.sum(dim=-1) / members, spec)


@dataclass(frozen=True)
class KeptShare:
    """k as a function of progress: ``initial`` up to ``hold``, ``final`` from ``end`` on, between them annealed.

    Raises: InputError for a share outside of 0 to 1, or an end before the hold.
    """

    initial: float = 0.1
    final: float = 0.0
    hold: float = 0.0
    end: float = 0.8
    kind: Annealing = "linear"

    def __post_init__(self) -> None:
        if self.kind not in ANNEALINGS:
            raise unknown_name("saliency.kind", self.kind, ANNEALINGS)
        for name in ("initial", "final", "hold", "end"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"saliency.{name}: found {getattr(self, name)}, allowed is 0 to 1")
        if self.end < self.hold:
            raise InputError(f"saliency.end: found {self.end}, it must not be before saliency.hold ({self.hold})")

    def at(self, progress: float) -> float:
        """Return k at ``progress`` in [0, 1]."""
        if progress >= self.end:
            return self.final
        if progress <= self.hold:
            return self.initial
        share = (progress - self.hold) / (self.end - self.hold)
        if self.kind == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.initial + (self.final - self.initial) * share


class ScoreAverage:
    """A moving average of column scores ``[I]`` that is right from the first one on.

    Source: arXiv 1412.6980, section 3 (the correction of the bias towards the initial zeros).
    """

    def __init__(self, memory: float) -> None:
        if not 0.0 <= memory < 1.0:
            raise InputError(f"saliency.memory: found {memory}, allowed is 0 to below 1")
        self.memory = memory
        self.updates = 0
        self.total: Tensor | None = None

    def update(self, scores: Tensor) -> None:
        """Take in ``scores [I]``."""
        scores = scores.float() * (1 - self.memory)
        self.total = scores if self.total is None else self.total.mul_(self.memory).add_(scores)
        self.updates += 1

    def value(self) -> Tensor:
        """Return the average ``[I]``."""
        assert self.total is not None
        return self.total / (1 - self.memory**self.updates)


def column_peaks(weight: Tensor) -> Tensor:
    """Return max|w| of each column of ``weight [O, I]``."""
    return weight.detach().abs().amax(dim=0)


def highest_columns(scores: Tensor, share: float) -> Tensor | None:
    """Return the mask of the round(share * I) columns with the highest ``scores [I]``; None when that is none.

    Exactly that many: of columns with equal scores the first are taken.
    """
    count = round(share * scores.numel())
    if not count:
        return None
    order = torch.sort(scores, descending=True, stable=True).indices
    mask = torch.zeros_like(scores, dtype=torch.bool)
    mask[order[:count]] = True
    return mask
