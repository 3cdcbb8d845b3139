"""What an export starts from: a checkpoint as a torch model and its parts, or the parts of any other ternary model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from wrinklefree.artifact.config import parse_config
from wrinklefree.artifact.manifest import PackedInfo, model_format, read_config
from wrinklefree.artifact.parts import ModelParts
from wrinklefree.artifact.sources import read_parts
from wrinklefree.errors import InputError
from wrinklefree.export.walk import model_parts
from wrinklefree.models.io import CheckpointInfo, load_checkpoint
from wrinklefree.quant.low_rank import low_rank_linears


@dataclass(frozen=True)
class Source:
    """A model to export. ``model``: the torch model, of a checkpoint only."""

    path: Path
    parts: ModelParts
    model: nn.Module | None = None

    @property
    def dlm(self) -> Mapping[str, Any] | None:
        """The marker of a diffusion model."""
        return self.parts.info.dlm


def open_source(path: Path, format: str) -> Source:
    """Return a source by what its path is.

    Raises: InputError for a model that is not ternary, is a classifier, or is in ``format`` already.
    """
    if not path.is_file():
        config = read_config(path)
        kind = model_format(config)
        if kind == "checkpoint":
            return _checkpoint(path, config)
        if kind == "packed" and format == "packed":
            raise InputError(f"{path}: is a packed model already")
    return Source(path, read_parts(path))


def is_classifier(path: Path) -> bool:
    """Return whether a path is the checkpoint of a classifier, which writes no text."""
    return path.is_dir() and bool(_classes(read_config(path)))


def _classes(config: Mapping[str, Any]) -> list[str]:
    return [name for name in config.get("architectures") or () if str(name).endswith("ForSequenceClassification")]


def _checkpoint(path: Path, config: dict[str, Any]) -> Source:
    if classes := _classes(config):
        raise InputError(f"{path}: is a classifier ({classes[0]}), which writes no text; only hf-plain can hold it")
    parse_config(config, f"{path}/config.json")  # a family the engine does not run is told before any work
    model, _, checkpoint = load_checkpoint(path)
    ranks = {name: layer.rank for name, layer in low_rank_linears(model)}
    info = replace(_info(checkpoint), low_rank=ranks)
    return Source(path, model_parts(model, path, config, info), model)


def _info(checkpoint: CheckpointInfo) -> PackedInfo:
    return PackedInfo(
        granularity=checkpoint.spec.granularity,
        group_size=checkpoint.spec.group_size,
        embedding="q8",
        subln=checkpoint.subln,
        stage=checkpoint.stage,
        dlm=checkpoint.dlm,
        teacher=checkpoint.teacher,
        calibration=checkpoint.calibration,
        tokens_seen=checkpoint.tokens_seen,
        recipe_hash=checkpoint.recipe_hash,
    )
