"""Finished layers of a calibration on disk: hours of fitting survive an interruption.

    DIR/walk.json               what is fitted on what, and how: a walk with other settings does not go on here
    DIR/layer-NNN.safetensors   a finished layer's latents, scales and norms, its report in the metadata

What enters a layer is not kept. It is computed again from the layers before, which costs a forward of each, and is the
same bits on the same machine with as many threads; so an interrupted walk ends as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from wrinklefree.artifact.files import json_bytes, new_file, read_json, space_errors, write_bytes
from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.calibration.config import CalibrationConfig, LayerReport
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.ternary import TernarySpec

_SETTINGS = "walk.json"
_SCALE = "weight_scale"


@dataclass(frozen=True)
class LayerStore:
    """The finished layers of one walk, in ``directory``, and the dtype of its products; `open_store` makes it."""

    directory: Path
    dtype: torch.dtype

    def save(self, index: int, layer: nn.Module, report: LayerReport) -> None:
        """Write a finished layer under a temporary name, then rename it."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in layer.state_dict().items()}
        path = self._path(index)
        with space_errors(path), new_file(path) as temporary:
            save_file(tensors, temporary, metadata={"report": json.dumps(asdict(report))})

    def restore(self, index: int, layer: nn.Module) -> LayerReport | None:
        """Put what was fitted into the freshly converted ``layer``; None when it is not finished.

        Raises: FormatError for a damaged file.
        """
        path = self._path(index)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as stored:
                tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                report = LayerReport(**json.loads(stored.metadata()["report"]))
            _put(layer, tensors)
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, InputError) as error:
            raise FormatError(f"{path}: is damaged ({error}); remove it, and its layer is fitted again") from error
        return report

    def _path(self, index: int) -> Path:
        return self.directory / f"layer-{index:03}.safetensors"


def open_store(
    directory: Path,
    dtype: torch.dtype,
    model: nn.Module,
    sequences: Tensor,
    spec: TernarySpec,
    config: CalibrationConfig,
    subln: str,
) -> LayerStore:
    """Return the store of this walk, empty or with what an earlier attempt finished, which keeps its own ``dtype``.

    Raises: InputError when ``directory`` holds a walk over another model or text, or with other settings.
    """
    wanted: dict[str, Any] = {
        "model": _hash({name: parameter for name, parameter in model.named_parameters()}),
        "text": _hash({"tokens": sequences}),
        "sequences": list(sequences.shape),
        "spec": asdict(spec),
        "subln": subln,
        # The bound on time is this attempt's own.
        "config": {name: value for name, value in asdict(config).items() if name != "max_seconds"},
    }
    path = directory / _SETTINGS
    if not path.exists():
        with space_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json_bytes({**wanted, "dtype": str(dtype).removeprefix("torch.")}))
    found = read_json(path)
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise InputError(
            f"{directory}: holds the layers of another calibration (differs: {', '.join(other)}); remove it to begin "
            "anew, or give the same command to go on"
        )
    kept = {"float32": torch.float32, "bfloat16": torch.bfloat16}.get(str(found.get("dtype")))
    if kept is None:
        raise FormatError(f"{path}: dtype: found {found.get('dtype')}, allowed are float32 and bfloat16")
    return LayerStore(directory, kept)


def _put(layer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, module in layer.named_modules():
        if isinstance(module, BitLinear):
            # Parameters of its own: what it shares with the full-precision layer may have another dtype.
            module.weight = nn.Parameter(tensors[f"{name}.weight"], requires_grad=False)
            if f"{name}.{_SCALE}" in tensors:
                module.set_scale(tensors[f"{name}.{_SCALE}"])
    layer.load_state_dict(dict(tensors))
    for parameter in layer.parameters():
        parameter.requires_grad_(False)


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
