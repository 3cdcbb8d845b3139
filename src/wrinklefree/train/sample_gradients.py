"""Gradients, losses and embeddings of single sequences, as `data.influence` takes them.

The loss is the next-token cross-entropy on the clean sequence, whatever the run's objectives are: the probe's loss is
that one too. Nothing here touches ``.grad``, the random state or the student's mode.

Shapes: T tokens, D hidden, m values of a projected gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from wrinklefree.data.batch import TokenBatch
from wrinklefree.data.influence import project
from wrinklefree.data.permutation import key
from wrinklefree.errors import InputError
from wrinklefree.models.forward import forward
from wrinklefree.models.subln import decoder_layers
from wrinklefree.objectives.manager import ObjectiveManager, Tally, Term
from wrinklefree.objectives.next_token import NextToken
from wrinklefree.quant.bitlinear import bit_linears, quant_strength


def norms(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the gains and biases (vectors) of the whole model: few values, but the backward goes all the way."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad and p.ndim == 1}


def last_layer(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter of the last decoder layer: the backward goes through that layer alone."""
    own = {id(p) for p in decoder_layers(model)[-1].parameters()}
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) in own}


# Which parameters' gradients stand for the whole model's.
SUBSETS: dict[str, Callable[[nn.Module], dict[str, nn.Parameter]]] = {"norms": norms, "last_layer": last_layer}


@dataclass
class SequenceProbe:
    """Looks at one sequence at a time. ``size``: values that are kept of a larger gradient. ``seed`` of projections.

    ``autocast`` is the precision of the products, as the run has it.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)
    size: int = 2048
    seed: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    _directions: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    _manager: ObjectiveManager = field(default_factory=lambda: ObjectiveManager({"next_token": Term(NextToken())}))

    def _loss(self, batch: TokenBatch) -> Tensor:
        batch = batch.to(next(self.model.parameters()).device)
        counts = self._manager.counts(batch, {"next_token": 1.0})
        with self.autocast():
            return self._manager.loss(self.model, batch, {"next_token": 1.0}, counts, None, Tally())

    @torch.no_grad()
    def loss(self, batch: TokenBatch) -> Tensor:
        """Return the mean loss over the targets of ``batch``, a float32 scalar."""
        return self._loss(batch).float()

    def gradient(self, batch: TokenBatch) -> list[Tensor]:
        """Return the gradient of the mean loss, float32 [m] for each of the parameters."""
        with torch.enable_grad():
            found = torch.autograd.grad(self._loss(batch), list(self.parameters.values()), allow_unused=True)
        return [
            project((torch.zeros_like(p) if g is None else g).reshape(1, -1), self.size, key(self.seed, index))[0]
            for index, (g, p) in enumerate(zip(found, self.parameters.values(), strict=True))
        ]

    @torch.no_grad()
    def embedding(self, batch: TokenBatch, blocks: int = 4, tangents: int = 2) -> Tensor:
        """Return float32 [tangents * D]: how the states after the first ``blocks`` layers move, mean over tokens.

        Each tangent is a random direction in the parameters of those layers. It costs a forward through them for
        each tangent, and no backward.

        Source: arXiv 2505.19051, section on Jacobian-vector-product embeddings (4 blocks, 2 tangents).
        Differs: the mean over the tokens stands for the sequence (the authors' code takes the last token, which in a
        packed sequence has seen one document of several), and the layers are taken at strength 0, without rounding,
        because a rounded weight has no derivative along a direction.
        """
        layers = decoder_layers(self.model)
        last = layers[min(blocks, len(layers)) - 1]
        inside = {id(p) for layer in layers[:blocks] for p in layer.parameters()}
        names = [f"model.{name}" for name, p in self.model.named_parameters() if id(p) in inside]
        batch = batch.to(next(self.model.parameters()).device)
        wrapped = _Applied(self.model)
        out = []
        with _unquantized(self.model), sdpa_kernel(SDPBackend.MATH):
            for number in range(tangents):
                with forward_ad.dual_level():
                    states = _stopped_after(last, wrapped, self._duals(wrapped, names, number), batch)
                    moved = forward_ad.unpack_dual(states).tangent
                    if moved is None:
                        raise InputError("influence: this model has no derivative along a direction of its parameters")
                    seen = (batch.document_ids >= 0)[..., None]
                    out.append((moved.float() * seen).sum((0, 1)) / seen.sum().clamp_min(1))
        return torch.cat(out)

    def _duals(self, wrapped: nn.Module, names: list[str], number: int) -> dict[str, Tensor]:
        """The parameters, each with a random direction as long as itself, the same in every call and process."""
        duals = {}
        for index, name in enumerate(names):
            parameter = wrapped.get_parameter(name).detach()
            if (number, name) not in self._directions:
                generator = torch.Generator().manual_seed(key(self.seed, number, index) & 0x7FFFFFFFFFFFFFFF)
                drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device, parameter.dtype)
                self._directions[number, name] = drawn * parameter.float().square().mean().sqrt().to(parameter.dtype)
            duals[name] = forward_ad.make_dual(parameter, self._directions[number, name])
        return duals


class _Applied(nn.Module):
    """So that `functional_call` can exchange the parameters under a plain function of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        return function(self.model)


class _Reached(Exception):
    """Ends a forward where its result is not needed any more."""


def _stopped_after(layer: nn.Module, wrapped: nn.Module, parameters: dict[str, Tensor], batch: TokenBatch) -> Tensor:
    """Return the output of ``layer`` [1, T, D] with other parameters; what comes after it is not computed."""
    found: list[Tensor] = []

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Reached

    handle = layer.register_forward_hook(stop)
    try:
        torch.func.functional_call(wrapped, parameters, (lambda model: forward(model, batch),))
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


@contextmanager
def _unquantized(model: nn.Module) -> Iterator[None]:
    if next(bit_linears(model), None) is None:
        yield
        return
    strength = quant_strength(model)
    before, strength.value = strength.value, 0.0
    try:
        yield
    finally:
        strength.value = before
