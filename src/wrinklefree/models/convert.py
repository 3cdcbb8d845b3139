"""From a pretrained model to a ternary one: swap the linears, insert SubLN, in place.

`convert_model` rounds the weights as they are (absmean); `models.calibration` walks over the layers with
`convert_layer` and fits what was swapped.
"""

from __future__ import annotations

from torch import Tensor, nn

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.families import Family, family_of
from wrinklefree.models.subln import (
    SUBLN_INITS,
    SubLayerNorm,
    SublnInit,
    decoder_layers,
    fit_identity,
    insert_layer_norms,
)
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, bit_linears
from wrinklefree.quant.ternary import TernarySpec


def convert_model(
    model: nn.Module,
    spec: TernarySpec,
    subln: SublnInit = "none",
    sequences: Tensor | None = None,
    strength: float = 1.0,
) -> QuantStrength:
    """Swap the declared linears of ``model`` for `BitLinear` and insert SubLN; return the new strength.

    ``sequences`` [N, T] of token ids measures the gains of ``subln="identity"``. Embeddings and head stay as they
    are.

    Raises: InputError for an unknown family, a model that is ternary already, or missing ``sequences``.
    """
    family, eps = check_convertible(model, subln)
    if subln == "identity" and sequences is None:
        raise InputError("subln=identity needs text to measure its gains; give some, or use subln=ones")
    shared = QuantStrength(0.0)
    norms: list[SubLayerNorm] = []
    for layer in decoder_layers(model):
        norms += convert_layer(layer, family, spec, shared, eps if subln != "none" else None)
    if subln == "identity":
        assert sequences is not None
        fit_identity(norms, lambda: [model(sequence[None]) for sequence in sequences])
    shared.value = strength
    return shared


def check_convertible(model: nn.Module, subln: str) -> tuple[Family, float]:
    """Return the family of ``model`` and the epsilon of its norms. Raises: InputError when it cannot be converted."""
    if subln not in SUBLN_INITS:
        raise unknown_name("subln", subln, SUBLN_INITS)
    if next(bit_linears(model), None) is not None:
        raise InputError("the model is ternary already; converting twice would ternarise what calibration fitted")
    return family_of(model.config), float(model.config.rms_norm_eps)  # type: ignore[union-attr, arg-type]


def convert_layer(
    layer: nn.Module, family: Family, spec: TernarySpec, strength: QuantStrength, subln_eps: float | None
) -> list[SubLayerNorm]:
    """Convert one decoder layer; return its new norms (gains of one), none when ``subln_eps`` is None."""
    norms = insert_layer_norms(layer, family, subln_eps) if subln_eps is not None else []
    for name, linear in list(layer.named_modules()):
        if name.rpartition(".")[2] in family.linears:
            _replace(layer, name, linear, spec, strength)
    return norms


def _replace(layer: nn.Module, name: str, linear: nn.Module, spec: TernarySpec, strength: QuantStrength) -> None:
    if type(linear) is not nn.Linear:
        raise InputError(f"{name}: found {type(linear).__name__}, only nn.Linear can become ternary")
    ternary = BitLinear.from_linear(linear, spec, strength)
    ternary._forward_pre_hooks.update(linear._forward_pre_hooks)
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, ternary)
