"""The settings of calibration and what it reports."""

from __future__ import annotations

from dataclasses import dataclass, field

from wrinklefree.errors import InputError


@dataclass(frozen=True)
class CalibrationConfig:
    """How each decoder layer is fitted.

    ``error_feedback``: second-order rounding with the Gram matrix of the inputs; without it weights are rounded as
    they are, under absmean scales or, with ``fit_scales``, least-squares ones. ``epochs`` of block training on the
    full-precision layer's output follow (0: none), in batches of ``batch_sequences``, Adam with linear decay from
    ``learning_rate`` for latents, times ``scale_rate`` for scales, times ``norm_rate`` for norm gains.
    ``gram_sequences`` caps the sequences behind the Gram matrices. ``max_seconds`` bounds the whole walk: block
    training then gets what time the layer has left, so such a run is not repeatable bit for bit.
    """

    error_feedback: bool = True
    fit_scales: bool = True
    damping: float = 0.05
    epochs: float = 3.0
    batch_sequences: int = 4
    learning_rate: float = 1e-3
    scale_rate: float = 0.3
    norm_rate: float = 3.0
    gram_sequences: int = 32
    max_seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("damping", "learning_rate", "batch_sequences", "gram_sequences"):
            if getattr(self, name) <= 0:
                raise InputError(f"calibration.{name}: found {getattr(self, name)}, it must be above 0")
        if self.epochs < 0:
            raise InputError(f"calibration.epochs: found {self.epochs}, it cannot be negative")


@dataclass(frozen=True)
class LayerReport:
    """One layer's squared output error relative to its squared output, when rounded and after block training."""

    layer: int
    error_rounded: float
    error_trained: float
    training_steps: int
    seconds: float


@dataclass(frozen=True)
class CalibrationReport:
    """What calibration did: tokens used, seconds, the dtype of its products, and each layer's errors."""

    tokens: int
    seconds: float
    dtype: str
    layers: list[LayerReport] = field(default_factory=list)
