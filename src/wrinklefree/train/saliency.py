"""The saliency curriculum of a run: which columns of each ternary layer stay in full precision at which step.

Source: the idea of a fading share of salient columns is AWQ's (arXiv 2306.00978, section 3.1: a small share of salient
channels matters most; activations tell which) turned into a curriculum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from wrinklefree.data.build import TrainingData
from wrinklefree.errors import InputError
from wrinklefree.quant.bitlinear import BitLinear, bit_linears
from wrinklefree.quant.saliency import ScoreAverage, column_peaks, highest_columns
from wrinklefree.train.position import Position
from wrinklefree.train.recipe import Recipe, SaliencyRecipe


def build_saliency(recipe: Recipe, student: nn.Module, data: TrainingData) -> SaliencyCurriculum | None:
    """Return the companion when the recipe asks for it.

    Raises: InputError when the student has nothing to keep, or keeps columns that no schedule would ever release.
    """
    layers = dict(bit_linears(student))
    if recipe.saliency.kind == "none":
        if any(layer.kept_columns is not None for layer in layers.values()):
            raise InputError(
                f"{recipe.model.source}: keeps columns in full precision, and this recipe would keep them for good; "
                "set saliency.kind=linear, with saliency.initial as it ended there"
            )
        return None
    if not layers:
        raise InputError(f"saliency.kind={recipe.saliency.kind}: the student has no ternary layer")
    return SaliencyCurriculum(recipe.saliency, layers)


class SaliencyCurriculum:
    """A `Companion`: scores the columns every ``update_interval`` steps and keeps the share k(t) of the highest.

    Scores and masks are outside of the graph, and the masks change between steps only, so that the codes of a step
    are computed once. A layer's mask holds in training and in evaluation alike.
    """

    name = "saliency"

    def __init__(self, recipe: SaliencyRecipe, layers: Mapping[str, BitLinear]) -> None:
        self._recipe = recipe
        self._share = recipe.share
        self._layers = dict(layers)
        self._averages = {name: ScoreAverage(recipe.memory) for name in layers}
        self._inputs = {name: _InputMagnitude() for name in layers}
        self._hooks: list[RemovableHandle] = []
        self._kept: float | None = None

    def before_step(self, position: Position, progress: float) -> None:
        """Take in new scores and choose the columns, when it is their turn; let the inputs be measured before that."""
        self._stop_measuring()
        interval, share = self._recipe.update_interval, self._share.at(progress)
        due = position.step % interval == 0
        if due:
            for name in self._layers:
                self._take_scores(name)
        # The interval must not delay the end: what is exported may keep nothing.
        if due or self._kept != share == self._share.final:
            for name, layer in self._layers.items():
                layer.kept_columns = highest_columns(self._ranking(name), share)
            self._kept = share
        if self._recipe.score == "activation" and (position.step + 1) % interval == 0:
            self._hooks = [
                layer.register_forward_pre_hook(self._inputs[name].measure) for name, layer in self._layers.items()
            ]

    def after_step(self, position: Position, figures: Mapping[str, float]) -> Mapping[str, float]:
        """Report the share of the columns that this step kept."""
        self._stop_measuring()
        kept = sum(int(layer.kept_columns.sum()) for layer in self._layers.values() if layer.kept_columns is not None)
        return {"saliency/kept": kept / sum(layer.in_features for layer in self._layers.values())}

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": self._kept,
            "layers": {
                name: {
                    "updates": self._averages[name].updates,
                    "total": self._averages[name].total,
                    "columns": layer.kept_columns,
                    "inputs": self._inputs[name].total,
                    "tokens": self._inputs[name].tokens,
                }
                for name, layer in self._layers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = state["kept"]
        for name, layer in self._layers.items():
            saved, device = state["layers"][name], layer.weight.device
            self._averages[name].updates = saved["updates"]
            self._averages[name].total = _on(saved["total"], device)
            layer.kept_columns = _on(saved["columns"], device)
            self._inputs[name].total = _on(saved["inputs"], device)
            self._inputs[name].tokens = saved["tokens"]

    def _take_scores(self, name: str) -> None:
        scores = self._peaks(name)
        if self._recipe.score == "activation":
            inputs = self._inputs[name].take()
            if inputs is None:
                return
            scores = scores * inputs
        self._averages[name].update(scores)

    def _ranking(self, name: str) -> Tensor:
        """The average score of each column; before the first inputs were measured, the peak of its weights."""
        average = self._averages[name]
        return average.value() if average.updates else self._peaks(name)

    def _peaks(self, name: str) -> Tensor:
        return _whole(column_peaks(self._layers[name].weight)).float()

    def _stop_measuring(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


class _InputMagnitude:
    """The mean magnitude of each of a layer's input features over the forwards of one step, on every process."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.tokens = 0

    def measure(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].detach().flatten(0, -2)
        total = rows.abs().sum(dim=0, dtype=torch.float32)
        self.total = total if self.total is None else self.total + total
        self.tokens += rows.shape[0]

    def take(self) -> Tensor | None:
        """Return the mean ``[I]`` and forget it; None when nothing (or nothing finite) was measured."""
        total, tokens = self.total, self.tokens
        self.total, self.tokens = None, 0
        if total is None:
            return None
        mean = total / tokens
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process sees other tokens, but all must keep the same columns.
            torch.distributed.all_reduce(mean)
            mean /= torch.distributed.get_world_size()
        return mean if bool(torch.isfinite(mean).all()) else None


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor's whole."""
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    return tensor if gather is None else gather()


def _on(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else tensor.to(device)
