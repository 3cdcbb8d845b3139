"""A converted model as plain Hugging Face weights: transformers alone loads it and computes with the ternary values.

Each ternary matrix is written as codes times scales, and its low-rank correction added, under its own name, in the
model's dtype. What transformers then computes differs from ours in one thing: it does not round activations to int8.
(Its own BitNet layers would, but they know one scale for a matrix and ternarise once more.) A model with inserted SubLN
cannot be written so, because no class of transformers has those norms.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from wrinklefree.errors import InputError
from wrinklefree.models.families import family_of
from wrinklefree.models.io import load_checkpoint, save_checkpoint
from wrinklefree.models.subln import SubLayerNorm
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.low_rank import FACTORS, LowRankBitLinear
from wrinklefree.quant.ternary import expand_scale


def save_plain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write ``model`` (causal or a classifier) to the new directory ``out``, for `from_pretrained` of transformers.

    Raises: InputError when the model is not ternary, has SubLN, or ``out`` cannot be written.
    """
    layers = dict(bit_linears(model))
    if not layers:
        raise InputError("the model is not ternary; its own directory is plain already")
    state: dict[str, Tensor] = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, SubLayerNorm):
            if not family_of(model.config).own_sub_norms:
                raise InputError(
                    f"{name}: transformers has no such norm; convert with subln=none for a directory it can load, or "
                    "use this one with wrinklefree"
                )
            state.pop(f"{name}.eps")
    for name, layer in layers.items():
        codes, scale = layer.ternary()
        wide = codes.float() * expand_scale(scale.float(), layer.spec, layer.in_features)
        if isinstance(layer, LowRankBitLinear):  # its correction takes unrounded inputs, as all do there
            wide += (layer.low_rank_u.float() @ layer.low_rank_v.float()).detach()
            for factor in FACTORS:
                state.pop(f"{name}.{factor}")
        state[f"{name}.weight"] = wide.to(layer.weight.dtype).contiguous()
        state.pop(f"{name}.weight_scale", None)
    if getattr(model.config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    with torch.device("meta"):
        known = type(model)(model.config).state_dict().keys()
    if surplus := sorted(state.keys() - known):
        raise InputError(f"{surplus[0]}: transformers has no place for it; use this model with wrinklefree")
    save_checkpoint(model, tokenizer, out, None, state=state)


def export_plain(source: Path, out: Path) -> None:
    """Write the checkpoint in ``source`` as a plain directory ``out``. Raises: InputError as `save_plain`."""
    model, tokenizer, _ = load_checkpoint(source)
    save_plain(model, tokenizer, out)
