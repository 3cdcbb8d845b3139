"""The walk of calibration over the decoder layers, first to last.

For each layer: the full-precision output is taken as target; the layer is converted; its projections are rounded in
the order in which data passes them, each with the Gram matrix of what the already quantised network feeds it; block
training follows; the quantised outputs feed the next layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.models.calibration.block import BlockRunner, relative_error
from wrinklefree.models.calibration.block_training import train_block
from wrinklefree.models.calibration.config import CalibrationConfig, CalibrationReport, LayerReport
from wrinklefree.models.calibration.progress import open_store
from wrinklefree.models.convert import accept_row_positions, check_convertible, convert_layer
from wrinklefree.models.precision import fast_matmul_dtype
from wrinklefree.models.subln import SubLayerNorm, SublnInit, decoder_layers, fit_identity
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength
from wrinklefree.quant.error_feedback import fit_scales, inverse_factor, ternarize_with_feedback
from wrinklefree.quant.ternary import TernarySpec

# Sequences on which a layer's error after rounding is reported; the one after training is that of all.
_REPORTED = 8
# Between the seeds of two layers; larger than any usual run's range of seeds.
_SEED_STRIDE = 1_000_003
# Projections that see the same input are rounded with one Gram matrix; the groups stand in the order of the data.
STAGES = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def calibrate(
    model: nn.Module,
    sequences: Tensor,
    spec: TernarySpec,
    config: CalibrationConfig | None = None,
    subln: SublnInit = "none",
    on_layer: Callable[[LayerReport, int], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    state: Path | None = None,
) -> CalibrationReport:
    """Convert ``model`` in place, fitted on ``sequences`` (int64 token ids [N, T]); its strength is 1 afterwards.

    ``on_layer`` is told of each finished layer and of how many there are. Once ``stopped()`` is true, the layers left
    are rounded but not trained: quickly, and to a usable if worse model. ``state``: a directory that keeps finished
    layers; the same call goes on from them (`calibration.progress`).

    Raises: InputError for an unknown family, a converted model, no sequences, or another calibration's ``state``.
    """
    config = config or CalibrationConfig()
    family, eps = check_convertible(model, subln)
    if sequences.ndim != 2 or sequences.shape[0] == 0:
        raise InputError("calibration: found no text; give at least one sequence of tokens")
    started = time.monotonic()
    dtype, why = fast_matmul_dtype()
    store = None
    if state is not None:
        store = open_store(state, dtype, model, sequences, spec, config, subln)
        if store.dtype != dtype:  # which one is faster was measured, and an earlier attempt measured otherwise
            dtype, why = store.dtype, f"{store.dtype}, as this calibration began"
    runner, embedded = BlockRunner.of(model, sequences, dtype)
    quantized, full = embedded, embedded
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    strength = QuantStrength(1.0)
    layers = decoder_layers(model)
    reports: list[LayerReport] = []
    for index, layer in enumerate(layers):
        layer_started = time.monotonic()
        deadline = None
        if stopped():
            deadline = layer_started
        elif config.max_seconds is not None:
            left = started + config.max_seconds - layer_started
            deadline = layer_started + left / (len(layers) - index)
        target = runner.all(layer, full)
        norms = convert_layer(layer, family, spec, strength, eps if subln != "none" else None)
        found = store.restore(index, layer) if store else None
        if found is not None:
            quantized, full = runner.all(layer, quantized), target
        else:
            if subln == "identity":
                _at_zero(layer, lambda layer=layer, x=quantized: runner.all(layer, x), norms)  # type: ignore[misc]
            _round_layer(layer, runner, quantized[: config.gram_sequences], spec, strength, config)
            rounded = relative_error(runner.all(layer, quantized[:_REPORTED]), target[:_REPORTED])
            # Each layer draws from a seed of its own: it does not matter which were fitted in this process.
            generator = torch.Generator().manual_seed(config.seed + _SEED_STRIDE * index)
            steps = train_block(layer, runner, quantized, target, config, generator, deadline)
            quantized, full = runner.all(layer, quantized), target
            seconds = time.monotonic() - layer_started
            found = LayerReport(index, rounded, relative_error(quantized, target), steps, seconds)
            if store and not stopped():
                store.save(index, layer, found)
        reports.append(found)
        if on_layer:
            on_layer(reports[-1], len(layers))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    accept_row_positions(model)
    return CalibrationReport(sequences.numel(), time.monotonic() - started, why, reports)


def _at_zero(layer: nn.Module, run: Callable[[], object], norms: list[SubLayerNorm]) -> None:
    """Fit SubLN on the unrounded layer."""
    linears = [module for module in layer.modules() if isinstance(module, BitLinear)]
    shared = linears[0].strength
    shared.value = 0.0
    fit_identity(norms, run)
    shared.value = 1.0


def _round_layer(
    layer: nn.Module,
    runner: BlockRunner,
    x: Tensor,
    spec: TernarySpec,
    strength: QuantStrength,
    config: CalibrationConfig,
) -> None:
    """Round the projections of ``layer`` stage by stage; those not yet rounded stay in full precision meanwhile."""
    by_name = {name.rpartition(".")[2]: each for name, each in layer.named_modules() if isinstance(each, BitLinear)}
    unrounded = QuantStrength(0.0)
    for linear in by_name.values():
        linear.strength = unrounded
    for stage in STAGES:
        members = [by_name[name] for name in stage]
        if config.error_feedback:
            factor = inverse_factor(runner.gram(layer, members[0], x), config.damping)
            for linear in members:
                result = ternarize_with_feedback(linear.weight.detach().float(), factor, spec)
                linear.weight = nn.Parameter(result.latent.to(linear.weight.dtype), requires_grad=False)
                linear.set_scale(result.scale)
        elif config.fit_scales:
            for linear in members:
                linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
                linear.set_scale(fit_scales(linear.weight.float(), spec))
        else:
            for linear in members:
                linear.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        for linear in members:
            linear.strength = strength
