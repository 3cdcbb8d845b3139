"""Block training: latents, scales and norm gains of one ternary layer learn the full-precision layer's output.

The layer sees the inputs that the quantised layers before it produce, int8 activations are on, and the target is what
the full-precision layer makes of full-precision inputs: so each layer also learns to undo the errors before it.

Source: block-wise reconstruction as in BRECQ, arXiv 2102.05426, and EfficientQAT, arXiv 2407.11062 (Block-AP); the
straight-through gradients are those of `quant.bitlinear`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from wrinklefree.models.calibration.block import BlockRunner
from wrinklefree.models.calibration.config import CalibrationConfig


def train_block(
    layer: nn.Module,
    runner: BlockRunner,
    inputs: Tensor,
    targets: Tensor,
    config: CalibrationConfig,
    generator: torch.Generator,
    deadline: float | None = None,
) -> int:
    """Train ``layer`` in place on ``inputs`` -> ``targets``, both [N, T, D]; return the number of steps.

    The learning rate falls linearly to zero over the steps, or until ``deadline`` (a `time.monotonic` value) if that
    comes first.
    """
    size = min(config.batch_sequences, len(inputs))
    steps = int(config.epochs * len(inputs) / size)
    if steps == 0:
        return 0
    optimizer = _optimizer(layer, config)
    # A loss of about one: its size is without effect on Adam but for the epsilon.
    norm = targets.square().mean()
    batches = _batches(len(inputs), size, generator)
    started = time.monotonic()
    done = 0
    for step in range(steps):
        progress = step / steps
        if deadline is not None:
            progress = max(progress, (time.monotonic() - started) / max(deadline - started, 1e-9))
            if progress >= 1.0:
                break
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * (1.0 - progress)
        rows = next(batches)
        loss = (runner.forward(layer, inputs[rows]) - targets[rows]).square().mean() / norm
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    return done


def _optimizer(layer: nn.Module, config: CalibrationConfig) -> torch.optim.Optimizer:
    rates = {"latents": 1.0, "scales": config.scale_rate, "norms": config.norm_rate}
    members: dict[str, list[nn.Parameter]] = {kind: [] for kind in rates}
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(True)
        kind = "scales" if name.endswith("weight_scale") else "latents" if parameter.ndim == 2 else "norms"
        members[kind].append(parameter)
    groups = [
        {"params": members[kind], "lr": config.learning_rate * rate, "peak_lr": config.learning_rate * rate}
        for kind, rate in rates.items()
        if members[kind]
    ]
    return torch.optim.Adam(groups, betas=(0.9, 0.95), fused=True)


def _batches(sequences: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices of ``size`` sequences, without end: one permutation after another, each drawn when it is needed."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(sequences, generator=generator)])
        yield left[:size]
        left = left[size:]
