"""What `inspect_model` reports: one row for each tensor, and everything about the model around them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class TensorRow:
    """One tensor: its name, stored type, sizes, bytes, and the share of zeros among its ternary values."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    num_bytes: int
    num_parameters: int
    zeros: float | None = None


@dataclass(frozen=True)
class Inspection:
    """Everything `wf inspect` shows. ``kind`` is packed, checkpoint, hf, gguf or bin.

    ``scales`` says what one scale of the ternary layers covers. ``why_not`` is empty for what the engine runs, else the
    reason; ``hashes`` maps names of files to their SHA-256.
    """

    path: Path
    kind: str
    architecture: Mapping[str, Any]
    tensors: tuple[TensorRow, ...]
    training: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    changed_files: tuple[str, ...] | None = None
    scales: str | None = None
    why_not: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        return sum(row.num_parameters for row in self.tensors)

    @property
    def num_bytes(self) -> int:
        return sum(row.num_bytes for row in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.num_bytes / max(1, self.num_parameters)

    @property
    def zeros(self) -> float | None:
        """The share of zeros among all ternary values, or None when nothing is known to be ternary."""
        counted = [row for row in self.tensors if row.zeros is not None]
        weights = sum(row.num_parameters for row in counted)
        return sum((row.zeros or 0.0) * row.num_parameters for row in counted) / weights if weights else None

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "architecture": dict(self.architecture),
            "num_parameters": self.num_parameters,
            "num_bytes": self.num_bytes,
            "bits_per_weight": self.bits_per_weight,
            "zeros": self.zeros,
            "scales": self.scales,
            "engine_runs_it": not self.why_not,
            "why_not": self.why_not or None,
            "hashes": dict(self.hashes),
            "training": dict(self.training),
            "tokenizer": dict(self.tokenizer),
            "changed_files": None if self.changed_files is None else list(self.changed_files),
            "tensors": [
                {
                    "name": row.name,
                    "type": row.type_name,
                    "shape": list(row.shape),
                    "bytes": row.num_bytes,
                    "parameters": row.num_parameters,
                    "zeros": row.zeros,
                }
                for row in self.tensors
            ],
        }


def scales_text(granularity: str, group_size: int) -> str:
    """Return what one scale covers, as a person says it."""
    return f"one per {group_size} columns" if granularity == "group" else f"one per {granularity}"
