"""The quickstart's picture: loss curve, error of each layer, one layer's weights before and after, size and speed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from wrinklefree.artifact.files import write_bytes
from wrinklefree.errors import MissingDependencyError
from wrinklefree.quant.ternary import TernarySpec, absmean_scale, expand_scale

_BEFORE, _AFTER = "#8a8f98", "#c2410c"
Weights = tuple[Tensor, Tensor, Tensor, TernarySpec]  # original, latent, scale of the ternary layer, its spec


def draw(path: Path, report: dict[str, Any], phases: dict[str, Any], layer: str, weights: Weights) -> None:
    """Write the picture as a PNG file.

    Raises: MissingDependencyError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(
            "the report's picture needs matplotlib: pip install 'wrinklefree[quickstart]'"
        ) from error
    figure = Figure(figsize=(12, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    _curve(axes[0, 0], report, phases.get("distill"))
    _layer_errors(axes[0, 1], phases.get("calibrate"))
    _weights(axes[1, 0], layer, weights)
    _bars(axes[1, 1], report)
    figure.suptitle(f"{report['teacher']['name']}, made ternary" + (" (partial)" if report["partial"] else ""))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


def _curve(axes: Any, report: dict[str, Any], distilled: dict[str, Any] | None) -> None:
    axes.set_title("Distillation: loss on the training batch, and held-out losses")
    points = (distilled or {}).get("curve", [])
    if points:
        axes.plot([point["tokens"] for point in points], [point["loss"] for point in points], color=_AFTER, lw=1)
        axes.set_ylabel("KL to the teacher, nats")
        axes.set_xlabel("tokens")
    loss = report["loss"]
    text = "held-out nats per token\n" + "\n".join(f"{name:14s}{value:7.3f}" for name, value in loss.items())
    axes.text(0.98, 0.95, text, transform=axes.transAxes, ha="right", va="top", family="monospace", fontsize=9)


def _layer_errors(axes: Any, fitted: dict[str, Any] | None) -> None:
    axes.set_title("Squared error of each layer's output, relative")
    layers = (fitted or {}).get("layers", [])
    numbers = [layer["layer"] for layer in layers]
    axes.plot(numbers, [layer["error_rounded"] for layer in layers], color=_BEFORE, label="rounded, error fed back")
    axes.plot(numbers, [layer["error_trained"] for layer in layers], color=_AFTER, label="after block training")
    axes.set_xlabel("layer")
    if layers:
        axes.set_yscale("log")
        axes.legend()


def _weights(axes: Any, layer: str, weights: Weights) -> None:
    original, latent, scale, spec = weights
    bins = np.linspace(-4, 4, 161)
    before = original.detach() / expand_scale(absmean_scale(original, spec), spec, original.shape[1])
    after = latent.detach() / expand_scale(scale, spec, latent.shape[1])
    axes.hist(before.flatten().numpy(), bins, color=_BEFORE, alpha=0.6, label="original / mean |w|", density=True)
    axes.hist(after.flatten().numpy(), bins, color=_AFTER, alpha=0.6, label="latent / scale", density=True)
    codes = after.round().clamp(-1, 1)
    shares = [float((codes == value).float().mean()) for value in (-1, 0, 1)]
    for edge in (-0.5, 0.5):
        axes.axvline(edge, color="black", lw=0.8, ls=":")
    axes.set_title(f"{layer}: codes -1, 0, +1 = " + ", ".join(f"{share:.0%}" for share in shares))
    axes.legend()


def _bars(axes: Any, report: dict[str, Any]) -> None:
    axes.set_title("Size and decode speed")
    axes.set_axis_off()
    size, speed = report["bytes"], report["decode_tok_s"]
    for place, title, before, after, unit in (
        ([0.02, 0.12, 0.42, 0.78], "MB", size["source"] / 1e6, size["packed"] / 1e6, "MB"),
        ([0.56, 0.12, 0.42, 0.78], "tokens per second", speed["torch_fp32"], speed["engine"], "tok/s"),
    ):
        inner = axes.inset_axes(place)
        labels = ("source\nQ4_1", "packed") if unit == "MB" else ("torch\nfloat32", "engine")
        bars = inner.bar((0, 1), (before, after), color=(_BEFORE, _AFTER))
        inner.set_xticks((0, 1), labels)
        inner.bar_label(bars, fmt="%.0f")
        inner.set_title(title, fontsize=9)
