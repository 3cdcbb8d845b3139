"""Writing Hugging Face directories: BitNet's packed layers, and plain floats. No torch, no transformers.

`prepare_hf` gives the parts as they will stand in the directory: what is read back must equal those bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrinklefree.artifact.files import json_bytes, write_bytes
from wrinklefree.artifact.huggingface.bitnet_layout import ROWS_PER_BYTE, LinearClass, pack_rows, step_of, stored_scale
from wrinklefree.artifact.manifest import CONFIG, WEIGHTS
from wrinklefree.artifact.parts import ModelParts, Part, TensorChange, TernaryPart
from wrinklefree.artifact.safetensors_file import SafetensorsWriter, TensorInfo
from wrinklefree.errors import InputError
from wrinklefree.export.hf_model import config_json, float_tensors, float_type, for_transformers, narrowed
from wrinklefree.export.one_scale_model import one_scale_model

NAME = "transformers' BitNet"


@dataclass(frozen=True)
class HfOptions:
    """How a packed Hugging Face directory is written.

    ``linear_class``: ``autobitlinear`` multiplies with the stored scale, which is then ours exactly, but it multiplies
    the bias too; ``bitlinear``, which older releases of transformers know, divides by the scale, so that it may be a
    last bit off. None: the first where no layer has a bias, else the second. ``lossy``: one scale for a matrix is
    fitted where the model has finer ones, a low-rank correction is left out.
    """

    linear_class: LinearClass | None = None
    lossy: bool = False

    def class_for(self, model: ModelParts) -> LinearClass:
        """Return the layer class that ``model`` is written for."""
        biased = any(isinstance(part, TernaryPart) and part.bias is not None for part in model.parts)
        return self.linear_class or ("bitlinear" if biased else "autobitlinear")


def write_hf(directory: Path, parts: ModelParts, options: HfOptions = HfOptions()) -> list[TensorChange]:
    """Write a directory that transformers loads with its BitNet layers; return what became of each part.

    Raises: InputError, before anything is written, when the format cannot hold the model; for lack of space.
    """
    model = prepare_hf(parts, options)
    linear_class = options.class_for(model)
    stored = _with_stored_biases(model) if linear_class == "autobitlinear" else model
    divide = linear_class == "bitlinear"
    layers = [part for part in model.parts if isinstance(part, TernaryPart)]
    dtype = float_type(stored, (stored_scale(part.codes_and_scales()[1], divide) for part in layers))
    infos = [TensorInfo(name, dtype, values.shape) for _, name, values in float_tensors(stored)]
    for part in layers:
        rows, columns = part.shape
        infos.append(TensorInfo(f"{part.name}.weight", "U8", (rows // ROWS_PER_BYTE, columns)))
        infos.append(TensorInfo(f"{part.name}.weight_scale", dtype, (1,)))
    with SafetensorsWriter(directory / WEIGHTS, infos, {"format": "pt"}) as writer:
        for _, name, values in float_tensors(stored):
            writer.write(name, narrowed(values, dtype))
        for part in layers:
            codes, step = part.codes_and_scales()
            writer.write(f"{part.name}.weight", pack_rows(codes))
            writer.write(f"{part.name}.weight_scale", narrowed(stored_scale(step, divide), dtype))
    config = config_json(model, dtype)
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": linear_class,
        "quantization_mode": "offline",
        "modules_to_not_convert": ["lm_head"],
    }
    write_rest(directory, config, model)
    kinds = dict.fromkeys((part.name for part in layers), f"2-bit, {dtype} scale per tensor")
    return tensor_changes(parts, infos, kinds)


def prepare_hf(parts: ModelParts, options: HfOptions = HfOptions()) -> ModelParts:
    """Return the model as `write_hf` writes it. Raises: InputError naming the first part that has no place."""
    fitted, _ = one_scale_model(parts, NAME, options.lossy)
    model = for_transformers(fitted)
    linear_class = options.class_for(model)
    return replace(model, parts=tuple(_prepared(part, linear_class) for part in model.parts))


def _with_stored_biases(model: ModelParts) -> ModelParts:
    """Return the model with each bias over its layer's step, as ``autobitlinear``, which multiplies it, stores it."""
    return replace(model, parts=tuple(_over_step(part) for part in model.parts))


def _over_step(part: Part) -> Part:
    if not isinstance(part, TernaryPart) or part.bias is None:
        return part
    return replace(part, bias=part.bias / part.codes_and_scales()[1])


def _prepared(part: Part, linear_class: LinearClass) -> Part:
    """A layer with the step and bias that are read back."""
    if not isinstance(part, TernaryPart):
        return part
    if part.shape[0] % ROWS_PER_BYTE:
        raise InputError(
            f"{part.name}: has {part.shape[0]} rows, transformers packs four to a byte; hf-plain and packed hold it"
        )

    def read() -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        codes, step = part.codes_and_scales()
        divide = linear_class == "bitlinear"
        return codes, step_of(stored_scale(step, divide), divide)

    bias = part.bias
    if bias is not None and linear_class == "autobitlinear":
        step = part.codes_and_scales()[1]
        bias = bias / step * step
    return replace(part, read=read, bias=bias)


def write_rest(directory: Path, config: dict[str, Any], model: ModelParts) -> None:
    """Write config.json and the files that go along byte for byte."""
    for name, data in model.files.items():
        write_bytes(directory / name, data)
    write_bytes(directory / CONFIG, json_bytes(config))


def tensor_changes(parts: ModelParts, infos: list[TensorInfo], kinds: Mapping[str, str]) -> list[TensorChange]:
    """Return what became of each part, its tensors in the file counted together; ``kinds`` names the ternary ones."""
    written: dict[str, list[TensorInfo]] = {}
    for info in infos:
        written.setdefault(info.name.rpartition(".")[0], []).append(info)
    return [
        TensorChange(
            part.name,
            part.stored.type_name,
            part.stored.num_bytes,
            kinds.get(part.name, written[part.name][0].dtype),
            sum(info.num_bytes for info in written[part.name]),
        )
        for part in parts.parts
    ]
