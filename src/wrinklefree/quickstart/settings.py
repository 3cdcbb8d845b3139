"""What the quickstart does with its minutes. Every number here was measured; docs/log.md has the comparisons."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from wrinklefree.errors import InputError
from wrinklefree.quant.ternary import TernarySpec

MIN_MINUTES = 2.5


@dataclass(frozen=True)
class Settings:
    """``minutes`` bounds the whole job. ``fixed_seconds`` of it go to loading, measuring, exporting, verifying and
    reporting; ``calibration_share`` of the rest to calibration, and what is then left to distillation.
    ``sequence_tokens`` is the length of calibration and training sequences; ``calibration_sequences`` and
    ``batch_sequences`` count them. ``check_tokens`` held-out tokens score each model.
    """

    minutes: float = 7.0
    fixed_seconds: float = 110.0
    calibration_share: float = 0.4
    sequence_tokens: int = 256
    calibration_sequences: int = 48
    calibration_epochs: float = 3.0
    batch_sequences: int = 4
    learning_rate: float = 3e-4
    scale_rate: float = 0.3
    norm_rate: float = 3.0
    layerwise_share: float = 0.1
    layerwise_weight: float = 0.3
    check_tokens: int = 4_096
    greedy_tokens: int = 172
    seed: int = 0
    spec: TernarySpec = field(default_factory=TernarySpec)

    def __post_init__(self) -> None:
        if self.minutes < MIN_MINUTES:
            raise InputError(
                f"--minutes: found {self.minutes:g}; converting, measuring and exporting alone take {MIN_MINUTES:g}"
            )

    @property
    def fitting_seconds(self) -> float:
        """What calibration and distillation may take together."""
        return max(10.0, 60.0 * self.minutes - self.fixed_seconds)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
