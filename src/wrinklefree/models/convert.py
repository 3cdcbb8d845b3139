"""From a pretrained model to a ternary one: swap the linears, insert SubLN. Calibration then fits what was swapped."""

from __future__ import annotations

from torch import Tensor, nn

from wrinklefree.errors import InputError, unknown_name
from wrinklefree.models.families import family_of
from wrinklefree.models.subln import SUBLN_INITS, SublnInit, decoder_layers, fit_identity_gains, insert_subln
from wrinklefree.quant.bitlinear import BitLinear, QuantStrength, bit_linears
from wrinklefree.quant.ternary import TernarySpec


def convert_model(
    model: nn.Module,
    spec: TernarySpec,
    subln: SublnInit = "none",
    sequences: Tensor | None = None,
    strength: float = 1.0,
) -> QuantStrength:
    """Swap the declared linears of ``model`` for `BitLinear` and insert SubLN, in place; return the new strength.

    ``sequences`` [N, T] of token ids measures the gains of ``subln="identity"``. Embeddings and head stay as they are.

    Raises: InputError for an unknown family, a model that is ternary already, or missing ``sequences``.
    """
    if subln not in SUBLN_INITS:
        raise unknown_name("subln", subln, SUBLN_INITS)
    if next(bit_linears(model), None) is not None:
        raise InputError(
            "the model is ternary already; converting twice would ternarise what calibration fitted"
        )
    family = family_of(model.config)
    if subln != "none":
        insert_subln(model)
    if subln == "identity":
        if sequences is None:
            raise InputError(
                "subln=identity needs calibration text to measure its gains; give some, or use subln=ones"
            )
        fit_identity_gains(model, sequences)
    shared = QuantStrength(strength)
    for layer in decoder_layers(model):
        for name, linear in list(layer.named_modules()):
            if name.rpartition(".")[2] in family.linears:
                _replace(layer, name, linear, spec, shared)
    return shared


def _replace(
    layer: nn.Module, name: str, linear: nn.Module, spec: TernarySpec, strength: QuantStrength
) -> None:
    if type(linear) is not nn.Linear:
        raise InputError(f"{name}: found {type(linear).__name__}, only nn.Linear can become ternary")
    ternary = BitLinear.from_linear(linear, spec, strength)
    ternary._forward_pre_hooks.update(linear._forward_pre_hooks)
    parent, _, attribute = name.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, ternary)
