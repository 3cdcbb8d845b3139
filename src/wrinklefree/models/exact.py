"""What a ternary model's file says, computed without rounding activations: the point between two programs' roundings.

Every program that runs a ternary file rounds activations to eight bits in its own way: for each row, for each 256 or
32 columns, some not at all. The plain model of transformers with codes times scales as its weights does none of it, so
the distance of a program from this one is what its own rounding does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wrinklefree.artifact.parts import ModelParts, NormPart, Part, TernaryPart
from wrinklefree.errors import FormatError
from wrinklefree.models.families import family_of
from wrinklefree.models.subln import SubLayerNorm, adopt_layer_norms, decoder_layers, insert_layer_norms


@torch.no_grad()
def exact_model(parts: ModelParts) -> PreTrainedModel:
    """Return the float32 model of transformers with the values of ``parts``; it takes four bytes a parameter.

    Raises: FormatError when the parts are not those that the config announces.
    """
    settings = {key: value for key, value in parts.config.items() if key not in ("model_type", "quantization_config")}
    config: Any = AutoConfig.for_model(parts.config["model_type"], **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    family = family_of(config)
    subln = any(part.name.endswith("_sub_norm") for part in parts.parts)
    for layer in decoder_layers(model):
        if family.own_sub_norms:
            adopt_layer_norms(layer)
        elif subln:
            insert_layer_norms(layer, family, float(config.rms_norm_eps))
    left = {name for name, _ in model.named_parameters()}
    for part in parts.parts:
        left -= _fill(model, part, parts.info.group_size)
    if left:
        raise FormatError(f"{parts.place}: holds no values for {sorted(left)[:2]}, which its config announces")
    return model.eval()


def _fill(model: nn.Module, part: Part, group_size: int) -> set[str]:
    """Give one part's values to its module; return the names of the parameters that have theirs now."""
    module: Any = model.get_submodule(part.name)
    given = {"weight": torch.from_numpy(_values(part, model, group_size))}
    if isinstance(part, TernaryPart) and part.bias is not None:
        given["bias"] = torch.from_numpy(np.array(part.bias))
    for name, values in given.items():
        getattr(module, name).copy_(values)
    if isinstance(part, NormPart) and part.eps is not None:
        module.eps.fill_(part.eps)
    return {f"{part.name}.{name}" for name in given}


def _values(part: Part, model: nn.Module, group_size: int) -> NDArray[np.float32]:
    if isinstance(part, NormPart):
        # Gemma's norms multiply by one plus their parameter, except for inserted ones.
        family = str(getattr(model.config, "model_type", ""))
        own = family.startswith("gemma") and not isinstance(model.get_submodule(part.name), SubLayerNorm)
        return np.array(part.gains - 1.0 if own else part.gains)
    if not isinstance(part, TernaryPart):
        return np.array(part.read())
    codes, scales = part.codes_and_scales()
    wide = np.repeat(scales, group_size, axis=1)[:, : part.shape[1]] if scales.ndim == 2 else scales.reshape(-1, 1)
    weights = codes * wide
    if part.factors is not None:
        weights = weights + part.factors[0] @ part.factors[1]
    return np.ascontiguousarray(weights, np.float32)


@contextmanager
def rounded_inputs(model: nn.Module, columns: int | None) -> Iterator[None]:
    """Let ``model`` round the inputs of its layers to eight bits by the largest of each ``columns`` of a row.

    None: of the whole row. The head's inputs stay as they are.
    """

    def round_blocks(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x = inputs[0]
        width = x.shape[-1] if columns is None else columns
        blocks = functional.pad(x, (0, -x.shape[-1] % width)).unflatten(-1, (-1, width))
        step = blocks.abs().amax(dim=-1, keepdim=True).clamp_min(1e-5) / 127
        return ((blocks / step).round() * step).flatten(-2)[..., : x.shape[-1]], *inputs[1:]

    layers = [m for name, m in model.named_modules() if isinstance(m, nn.Linear) and name != "lm_head"]
    handles = [layer.register_forward_pre_hook(round_blocks) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def float_logits(model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits float32 ``[T, V]`` of ``tokens``."""
    output = model(input_ids=torch.tensor([list(tokens)]), use_cache=False)
    logits: NDArray[np.float32] = output.logits[0].float().numpy()
    return logits
