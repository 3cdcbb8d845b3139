"""Low-rank correction of a whole model: which layers get factors, how they begin, and the walk that fits them.

The closed form (`quant.low_rank_fit`) runs over the decoder layers first to last. Each projection is fitted to its own
full-precision output on the inputs that the layers before it, already ternary and corrected, really produce.

Source: arXiv 2412.07902. Training the factors afterwards is a recipe (`low_rank.trainable`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.models.calibration.block import BlockRunner
from wrinklefree.models.calibration.walk import STAGES
from wrinklefree.models.exclusion import check_exclude, excluded
from wrinklefree.models.subln import decoder_layers
from wrinklefree.quant.activation import fake_quantize_activation
from wrinklefree.quant.bitlinear import bit_linears, full_strength
from wrinklefree.quant.low_rank import FACTORS, LowRankBitLinear, add_factors, low_rank_linears
from wrinklefree.quant.low_rank_fit import Moments, factor_bits, fit_low_rank

LowRankInit = Literal["none", "closed_form", "random", "keep"]


@dataclass(frozen=True)
class LowRankConfig:
    """Low-rank factors of a student's ternary layers.

    ``init``: none gives it none; random begins with U = 0; closed_form fits codes, scales and factors to the original
    weights on ``sequences`` of text, in ``alternations`` (excluded layers stay as they were converted); keep takes
    those that the checkpoint has. ``rank``: from 1 on the rank itself, below 1 a share of min(O, I). ``exclude``:
    layers without factors, as conversion takes them. ``trainable``: factors alone, or all parameters of the student.
    """

    init: LowRankInit = "none"
    rank: float = 16
    exclude: tuple[str, ...] = ()
    trainable: Literal["factors", "all"] = "factors"
    sequences: int = 32
    alternations: int = 4
    damping: float = 0.05

    def __post_init__(self) -> None:
        if not (0.0 < self.rank < 1.0 or (self.rank >= 1.0 and float(self.rank).is_integer())):
            raise InputError(f"low_rank.rank: found {self.rank}, allowed is a whole number, or a share below 1")
        for name, value, least in (("sequences", self.sequences, 1), ("alternations", self.alternations, 0)):
            if value < least:
                raise InputError(f"low_rank.{name}: found {value}, it must be at least {least}")
        if self.damping <= 0.0:
            raise InputError(f"low_rank.damping: found {self.damping}, it must be above 0")


@dataclass(frozen=True)
class LowRankReport:
    """One layer: squared error of its output as a share of the squared output, without and with factors."""

    name: str
    rank: int
    error_before: float
    error_after: float
    factor_bits: float


def layer_ranks(model: nn.Module, rank: float, exclude: Sequence[str] = ()) -> dict[str, int]:
    """Return the rank of every ternary layer of ``model`` that is not excluded, by full name.

    A rank above what a layer can have becomes the layer's full one.

    Raises: InputError when an entry of ``exclude`` names no ternary layer.
    """
    layers = dict(bit_linears(model))
    check_exclude(list(layers), exclude)
    ranks = {}
    for name, layer in layers.items():
        if not excluded(name, exclude):
            most = min(layer.out_features, layer.in_features)
            ranks[name] = min(most, max(1, math.floor(rank * most) if rank < 1.0 else int(rank)))
    return ranks


def fit_factors(
    model: nn.Module,
    sequences: Tensor,
    config: LowRankConfig,
    on_layer: Callable[[Sequence[LowRankReport]], None] = lambda reports: None,
) -> list[LowRankReport]:
    """Fit codes, scales and factors of the layers of ``model`` that have factors, in place, at strength 1.

    Their latents must still be the original weights. ``sequences``: int64 token ids [N, T]. ``on_layer`` is told of
    the projections of each finished decoder layer.
    """
    names = {id(layer): name for name, layer in low_rank_linears(model)}
    reports: list[LowRankReport] = []
    with full_strength(model), torch.no_grad():
        runner, states = BlockRunner.of(model, sequences, next(model.parameters()).dtype)
        for decoder_layer in decoder_layers(model):
            done = len(reports)
            for stage in STAGES:
                found = [each for name, each in bit_linears(decoder_layer) if name.rpartition(".")[2] in stage]
                members = [each for each in found if isinstance(each, LowRankBitLinear)]
                if not members:
                    continue
                moments = _moments(runner, decoder_layer, members[0], states)
                for layer in members:
                    reports.append(_fit_layer(names[id(layer)], layer, moments, config))
            on_layer(reports[done:])
            states = runner.all(decoder_layer, states)
    return reports


def prepare_low_rank(
    model: nn.Module,
    config: LowRankConfig,
    sequences: Callable[[int], Tensor],
    original: bool,
    say: Callable[[str], None],
) -> None:
    """Give a student the factors that ``config`` asks for, and freeze what it does not train.

    ``sequences``: so many rows of token ids. ``original``: the latents are the original model's weights.

    Raises: InputError when the student has factors already, or has none to keep, or is not what a closed form needs.
    """
    if config.init == "none":
        return
    present = sum(1 for _ in low_rank_linears(model))
    if config.init == "keep" and not present:
        raise InputError("low_rank.init=keep: the model has no factors; use closed_form or random")
    if config.init != "keep":
        if present:
            raise InputError(f"low_rank.init={config.init}: the model has factors in {present} layers; use keep")
        if config.init == "closed_form" and not original:
            raise InputError(
                "low_rank.init=closed_form: it needs the original weights, which a converted checkpoint no longer has; "
                "start from the original model, or use random"
            )
        add_factors(model, layer_ranks(model, config.rank, config.exclude))
    if config.init == "closed_form":
        reports = fit_factors(model, sequences(config.sequences), config, lambda layer: say(_errors(layer)))
        say(summary(reports))
    if config.trainable == "factors":
        train_only_factors(model)


def train_only_factors(model: nn.Module) -> None:
    """Freeze every parameter of ``model`` but its low-rank factors."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[2] in FACTORS)


def summary(reports: Sequence[LowRankReport]) -> str:
    """Return one line on what factors did to the errors, and what they cost."""
    before = statistics.fmean(report.error_before for report in reports)
    after = statistics.fmean(report.error_after for report in reports)
    bits = statistics.fmean(report.factor_bits for report in reports)
    return (
        f"Low-rank correction: mean squared error of {len(reports)} layers {before:.4f} -> {after:.4f} of the output; "
        f"factors add {bits:.2f} bits a weight (mean over layers, 16-bit factors)."
    )


def _errors(reports: Sequence[LowRankReport]) -> str:
    """Return one line for the projections of a decoder layer (or that it has none with factors)."""
    errors = (
        f"{report.name.removeprefix('model.')} {report.error_before:.4f} -> {report.error_after:.4f}"
        for report in reports
    )
    return f"Low-rank correction: {', '.join(errors) or 'nothing to correct in this layer'}."


def _moments(runner: BlockRunner, decoder_layer: nn.Module, projection: nn.Module, states: Tensor) -> Moments:
    """The second moments of what ``projection`` gets, before and after its rounding."""
    found: list[Moments] = []

    def add(rows: Tensor) -> None:
        part = Moments.of(rows, fake_quantize_activation(rows, 1.0))
        found[:] = [found[0] + part if found else part]

    runner.visit_inputs(decoder_layer, projection, states, add)
    return found[0]


def _fit_layer(name: str, layer: LowRankBitLinear, moments: Moments, config: LowRankConfig) -> LowRankReport:
    dtype = layer.weight.dtype
    fit = fit_low_rank(
        layer.weight.float(), moments, layer.rank, layer.spec, config.alternations, config.damping, dtype=dtype
    )
    layer.weight.copy_(fit.ternary.latent)
    layer.set_scale(fit.ternary.scale)
    layer.set_factors(fit.u, fit.v)
    bits = factor_bits(layer.out_features, layer.in_features, layer.rank)
    return LowRankReport(name, layer.rank, fit.error_before, fit.errors[-1], bits)
