"""Parts of a ternary model as a torch model to train on: latents that are codes times scales, beside fitted scales.

A latent divided by its scale is its code, so the model computes from its first step with exactly the file's weights.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TablePart, TernaryPart
from wrinklefree.errors import FormatError, InputError
from wrinklefree.models.convert import convert_model
from wrinklefree.models.io import CheckpointInfo
from wrinklefree.models.subln import SubLayerNorm
from wrinklefree.quant.bitlinear import BitLinear
from wrinklefree.quant.low_rank import FACTORS, add_factors
from wrinklefree.quant.ternary import MIN_SCALE, TernarySpec, expand_scale


def model_from_parts(parts: ModelParts) -> tuple[PreTrainedModel, CheckpointInfo]:
    """Return the model, in float32, and the info of its checkpoint.

    Raises: FormatError when a part has no place in the family's class; InputError when training's rule cannot keep a
    scale.
    """
    info = parts.info
    settings = {key: value for key, value in parts.config.items() if key not in ("model_type", "architectures")}
    config = AutoConfig.for_model(parts.config["model_type"], **settings)
    with no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _zero_biases(model)
    spec = TernarySpec(info.granularity, info.group_size)
    convert_model(model, spec, subln="ones" if info.subln != "none" else "none")
    add_factors(model, {part.name: part.rank for part in parts.parts if isinstance(part, TernaryPart) and part.rank})
    with torch.no_grad():
        for part in parts.parts:
            _set(model, part, parts.place, spec)
    model.tie_weights()
    return model.eval(), CheckpointInfo(
        stage=info.stage,
        spec=spec,
        subln=info.subln,
        calibration=info.calibration,
        teacher=info.teacher,
        tokens_seen=info.tokens_seen,
        recipe_hash=info.recipe_hash,
        dlm=info.dlm,
    )


def _zero_biases(model: nn.Module) -> None:
    """A bias that no part has adds nothing; what is in memory before it is set would."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            nn.init.zeros_(parameter)


def _set(model: nn.Module, part: Part, place: str, spec: TernarySpec) -> None:
    try:
        module = model.get_submodule(part.name)
    except AttributeError as error:
        raise FormatError(f"{place}: {part.name}: {type(model).__name__} of transformers has no such part") from error
    if isinstance(part, TablePart):
        _copy(module, "weight", part.read(), part.name)
    elif isinstance(part, NormPart):
        own = isinstance(module, SubLayerNorm)
        gemma = str(getattr(model.config, "model_type", "")).startswith("gemma") and not own
        _copy(module, "weight", part.gains - np.float32(1) if gemma else part.gains, part.name)
        if isinstance(module, SubLayerNorm) and part.eps is not None:
            module.eps.fill_(part.eps)
    else:
        assert isinstance(module, BitLinear)
        _set_layer(module, part, place, spec)


def _set_layer(layer: BitLinear, part: TernaryPart, place: str, spec: TernarySpec) -> None:
    codes, scales = part.codes_and_scales()
    small = np.abs(scales) < np.float32(MIN_SCALE)
    if (small & (scales != 0)).any() or (scales < 0).any():
        raise InputError(
            f"{place}: {part.name}: its smallest scale is {scales.min():.2g}; training keeps scales of at least "
            f"{MIN_SCALE}, so this model can be packed (--to packed), not trained on"
        )
    scale = torch.from_numpy(np.where(small, np.float32(MIN_SCALE), scales))
    layer.set_scale(scale)
    _copy(layer, "weight", (torch.from_numpy(codes) * expand_scale(scale, spec, part.shape[1])).numpy(), part.name)
    for attribute, values in (("bias", part.bias), *zip(FACTORS, part.factors or (None, None), strict=True)):
        if values is not None:
            _copy(layer, attribute, values, part.name)


def _copy(module: nn.Module, attribute: str, values: NDArray[np.float32], name: str) -> None:
    target = getattr(module, attribute, None)
    if target is None or tuple(target.shape) != values.shape:
        raise FormatError(f"{name}.{attribute} {list(values.shape)}: {type(module).__name__} has no place for it")
    target.copy_(torch.from_numpy(np.ascontiguousarray(values)))
