"""Which role every parameter plays, so that each one is in exactly one group of an optimizer.

- ``matrix``: two-dimensional weights inside the network (the latents of ternary layers, adapters): Muon's territory.
- ``embedding``: token embeddings and output heads. A row is touched only when its token occurs, which breaks the
  assumption behind orthogonalised updates. Tensors of three or more dimensions are treated the same way.
- ``norm``: gains and biases, all one-dimensional.
- ``scale``: the learned scales of ternary layers (``weight_scale``), of any shape.

Weight decay pulls a weight to zero; for norms and scales zero is no neutral value, so they get none.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

ROLES = ("matrix", "embedding", "norm", "scale")
DECAYED_ROLES = frozenset({"matrix", "embedding"})
# Heads by the names Hugging Face gives them; a tied head is the embedding's own parameter.
_HEAD_NAMES = frozenset({"lm_head", "embed_out", "score", "classifier"})


@dataclass
class RoleGroup:
    """The trainable parameters of one role, in the model's order, with their names."""

    role: str
    names: list[str] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)


def parameters_by_role(model: nn.Module) -> dict[str, RoleGroup]:
    """Return a group for every role that has trainable parameters; a tied parameter appears once."""
    embeddings = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.rpartition(".")[2] in _HEAD_NAMES
        for key, parameter in module.named_parameters(recurse=False)
        if key == "weight"
    }
    groups = {role: RoleGroup(role) for role in ROLES}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            group = groups[_role(name, parameter, id(parameter) in embeddings)]
            group.names.append(name)
            group.parameters.append(parameter)
    return {role: group for role, group in groups.items() if group.parameters}


def _role(name: str, parameter: nn.Parameter, is_embedding: bool) -> str:
    if name.rpartition(".")[2] == "weight_scale":
        return "scale"
    if parameter.ndim < 2:
        return "norm"
    return "embedding" if is_embedding or parameter.ndim > 2 else "matrix"
