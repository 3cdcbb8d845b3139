"""Everything that a model card says in numbers, read from WORK; nothing is computed anew."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from figure_store import read

from wrinklefree.artifact.manifest import read_config


@dataclass(frozen=True)
class Figures:
    """The figures of a run in WORK. Raises: SystemExit when nothing was measured."""

    work: Path

    def of(self, name: str) -> Any:
        """Return a figure's value, None where it was not made."""
        found = read(self.work / "figures" / f"{name}.json")
        return found["value"] if found else None

    def machine(self, name: str) -> str:
        """Return what a figure was measured on."""
        found = read(self.work / "figures" / f"{name}.json")
        if not found:
            return "not recorded"
        machine = found["provenance"]["machine"]
        return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB"

    @cached_property
    def about(self) -> dict[str, Any]:
        found = self.of("models")
        if found is None:
            raise SystemExit(f"{self.work}/figures: found no figures; run measure.py first")
        return dict(found)

    @property
    def delivered(self) -> str:
        return str(self.about["delivered"])

    @property
    def names(self) -> list[str]:
        """The ternary models, in the order of their stages."""
        return [model["name"] for model in self.about["models"]]

    @property
    def packed(self) -> Path:
        """The packed directory of the model that is delivered."""
        return Path(next(model["path"] for model in self.about["models"] if model["name"] == self.delivered))

    def by_kind(self, figure: str, model: str) -> dict[str, Any]:
        """Return a model's figures of that name by kind of text."""
        found = {kind: self.of(f"{figure}-{model}-{kind}") for kind in self.about["kinds"]}
        return {kind: value for kind, value in found.items() if value is not None}

    @cached_property
    def losses(self) -> dict[str, dict[str, Any]]:
        return {name: self.by_kind("loss", name) for name in ("teacher", *self.names)}

    def speeds(self) -> list[dict[str, Any]]:
        """Return the speed measurements, the one with the most threads last."""
        paths = (self.work / "figures").glob("speed-*-threads.json")
        found = [each["value"] for path in paths if (each := read(path))]
        return sorted(found, key=lambda each: each["machine"]["threads"])

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """Return the logged steps of a training stage, [] where it has none."""
        path = self.work / name / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]

    def size(self) -> dict[str, Any]:
        """Return the sizes and settings of the packed files that are delivered."""
        config = read_config(self.packed)
        files = sorted(path for path in self.packed.iterdir() if path.is_file())
        total = sum(path.stat().st_size for path in files)
        return {"bytes": total, "weights": (self.packed / "model.safetensors").stat().st_size, "config": config}
