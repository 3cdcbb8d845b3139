"""The share of zeros a checkpoint's latents ternarise to, tensor by tensor, without building the model."""

from __future__ import annotations

from pathlib import Path

import torch

from wrinklefree.artifact.manifest import WEIGHTS, read_config
from wrinklefree.artifact.safetensors_file import SafetensorsFile
from wrinklefree.models.io import CheckpointInfo
from wrinklefree.quant.haar import haar_ternarize
from wrinklefree.quant.ternary import ternarize

_TERNARY = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))


def checkpoint_zeros(directory: str | Path) -> dict[str, float]:
    """Return, for each ternary layer's weight in a checkpoint directory, the share of zeros among its codes.

    Raises: FormatError when the directory is damaged or not converted.
    """
    directory = Path(directory)
    info = CheckpointInfo.from_json(read_config(directory).get("wrinklefree"), f"{directory}/config.json")
    file = SafetensorsFile(directory / WEIGHTS)
    shares = {}
    for name in file.tensors:
        if name.endswith(_TERNARY):
            scale = _tensor(file, f"{name}_scale") if f"{name}_scale" in file.tensors else None
            weight = _tensor(file, name)
            haar = info.spec.quantizer == "haar"
            codes = haar_ternarize(weight, info.spec)[0] if haar else ternarize(weight, info.spec, scale)[0]
            shares[name] = 1.0 - float(torch.count_nonzero(codes)) / codes.numel()
    return shares


def _tensor(file: SafetensorsFile, name: str) -> torch.Tensor:
    # Copied, because a tensor must be writable and the file is mapped read-only.
    tensor = torch.from_numpy(file.array(name).copy())
    return tensor.view(torch.bfloat16) if file.tensors[name].dtype == "BF16" else tensor
