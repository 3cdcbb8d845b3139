"""From a pretrained model to a ternary one: swap the linears, insert SubLN, in place.

`convert_model` rounds the weights as they are (absmean); `models.calibration` walks over the layers with
`convert_layer` and fits what was swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.exclusion import check_exclude, excluded
from wrinklefree.models.families import Family, family_of
from wrinklefree.models.subln import (
    SUBLN_INITS,
    SubLayerNorm,
    SublnInit,
    adopt_layer_norms,
    decoder_layers,
    fit_identity,
    insert_layer_norms,
)
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, bit_linears
from wrinklefree.quant.ternary import TernarySpec

_LAYERS = "model.layers"


def convert_model(
    model: nn.Module,
    spec: TernarySpec,
    subln: SublnInit = "none",
    sequences: Tensor | Sequence[Tensor] | None = None,
    strength: float = 1.0,
    exclude: Sequence[str] = (),
) -> QuantStrength:
    """Swap the declared linears of ``model`` for `BitLinear` and insert SubLN; return the new strength.

    ``sequences`` [N, T] of token ids (or N rows [T] of any lengths) measures the gains of ``subln="identity"``.
    Embeddings and head stay as they are, and so do the linears whose path has an entry of ``exclude`` in it
    (`models.exclusion`); nothing else does.

    Raises: InputError for an unknown family, a model that is ternary already, or missing ``sequences``.
    """
    family, eps = check_convertible(model, subln)
    check_exclude([name for name, _ in _declared(model, family)], exclude)
    if subln == "identity" and sequences is None:
        raise InputError("subln=identity needs text to measure its gains; give some, or use subln=ones")
    shared = QuantStrength(0.0)
    norms: list[SubLayerNorm] = []
    for index, layer in enumerate(decoder_layers(model)):
        stay = [name for name, _ in layer.named_modules() if excluded(f"{_LAYERS}.{index}.{name}", exclude)]
        norms += convert_layer(layer, family, spec, shared, eps if subln != "none" else None, stay)
    accept_row_positions(model)
    if subln == "identity":
        assert sequences is not None
        fit_identity(norms, lambda: _run_backbone(model, sequences))
    shared.value = strength
    return shared


def _run_backbone(model: nn.Module, sequences: Tensor | Sequence[Tensor]) -> None:
    """Send each sequence through the layers and keep nothing: logits of all of them would be gigabytes."""
    backbone = model.get_submodule("model")
    for sequence in sequences:
        backbone(sequence[None], use_cache=False)


def check_convertible(model: nn.Module, subln: str) -> tuple[Family, float]:
    """Return the family of ``model`` and the epsilon of its norms. Raises: InputError when it cannot be converted."""
    if subln not in SUBLN_INITS:
        raise unknown_name("subln", subln, SUBLN_INITS)
    if next(bit_linears(model), None) is not None:
        raise InputError("the model is ternary already; converting twice would ternarise what calibration fitted")
    family = family_of(model.config)
    if family.own_sub_norms and subln != "none":
        raise InputError(
            f"subln={subln}: {family.model_type} has norms before o_proj and down_proj already; use subln=none"
        )
    return family, float(model.config.rms_norm_eps)  # type: ignore[union-attr, arg-type]


def convert_layer(
    layer: nn.Module,
    family: Family,
    spec: TernarySpec,
    strength: QuantStrength,
    subln_eps: float | None,
    exclude: Sequence[str] = (),
) -> list[SubLayerNorm]:
    """Convert one decoder layer; return its new norms (gains of one), none when ``subln_eps`` is None.

    ``exclude``: names, within the layer, of linears that stay as they are (and get no norm before them).
    """
    if family.own_sub_norms:
        adopt_layer_norms(layer)
    norms = insert_layer_norms(layer, family, subln_eps, exclude) if subln_eps is not None else []
    for name, linear in list(layer.named_modules()):
        if name.rpartition(".")[2] in family.linears and name not in exclude:
            _replace(layer, name, linear, spec, strength)
    return norms


def _declared(model: nn.Module, family: Family) -> list[tuple[str, nn.Module]]:
    """The linears of ``model`` that its family declares, under their full names."""
    return [
        (f"{_LAYERS}.{name}", module)
        for name, module in decoder_layers(model).named_modules()
        if name.rpartition(".")[2] in family.linears
    ]


def accept_row_positions(model: nn.Module) -> None:
    """Let the backbone take position ids of shape [T] as well as [B, T]."""
    model.get_submodule("model").register_forward_pre_hook(_row_positions, with_kwargs=True)


def _row_positions(module: nn.Module, inputs: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Take position ids [T] for every row too; the rotary embedding would broadcast them over the heads."""
    positions = keywords.get("position_ids")
    if positions is not None and positions.ndim == 1:
        keywords = {**keywords, "position_ids": positions[None]}
    return inputs, keywords


def _replace(layer: nn.Module, name: str, linear: nn.Module, spec: TernarySpec, strength: QuantStrength) -> None:
    if type(linear) is not nn.Linear:
        raise InputError(f"{name}: found {type(linear).__name__}, only nn.Linear can become ternary")
    ternary = BitLinear.from_linear(linear, spec, strength)
    ternary._forward_pre_hooks.update(linear._forward_pre_hooks)
    step = _only_step(linear.weight)
    if step is not None:
        # Rounding a ternary matrix by its mean would shrink it by its share of zeros; its own step keeps it exactly.
        ternary.set_scale(torch.full(spec.scale_shape(linear.out_features, linear.in_features), step))
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, ternary)


@torch.no_grad()
def _only_step(weight: Tensor) -> float | None:
    """Return a when every entry is -a, 0 or a, a > 0 (a matrix that is ternary already), else None."""
    if weight.is_meta:
        return None
    largest = weight.abs().max()
    # Most matrices are told by their first row.
    if not float(largest) or not all(bool(((w == 0) | (w.abs() == largest)).all()) for w in (weight[0], weight)):
        return None
    return float(largest)
