"""What goes along with the steps of a recipe: one line for each companion, in the order in which they act."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from wrinklefree.data.build import TrainingData
from wrinklefree.train.influence import build_influence
from wrinklefree.train.products import build_products
from wrinklefree.train.qk_clip import QkClip
from wrinklefree.train.recipe import Recipe
from wrinklefree.train.saliency import build_saliency
from wrinklefree.train.session import Companion


def _qk_clip(recipe: Recipe, student: nn.Module, data: TrainingData) -> Companion | None:
    config = recipe.optimizer
    if config.kind != "muonclip":
        return None
    return QkClip(student, config.clip_threshold, config.clip_alpha, config.clip_every)


# Each returns its companion, or None when the recipe does not ask for it.
COMPANIONS: tuple[Callable[[Recipe, nn.Module, TrainingData], Companion | None], ...] = (
    build_products,
    build_saliency,
    _qk_clip,
    build_influence,
)


def build_companions(recipe: Recipe, student: nn.Module, data: TrainingData) -> list[Companion]:
    """Return the companions that ``recipe`` asks for, for a student and the data it is trained on."""
    made = (build(recipe, student, data) for build in COMPANIONS)
    return [companion for companion in made if companion is not None]
