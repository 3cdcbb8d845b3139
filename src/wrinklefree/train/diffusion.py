"""What a recipe with diffusion objectives adds to a student and its teacher: the MASK token, the marker, the view."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from wrinklefree.models.io import CheckpointInfo
from wrinklefree.models.mask_token import DiffusionMarker, add_mask_token
from wrinklefree.objectives.manager import View
from wrinklefree.objectives.noise import NOISED_VIEW, noised_view
from wrinklefree.train.recipe import Recipe


def diffusing(recipe: Recipe, model: nn.Module, tokenizer: Any, info: CheckpointInfo) -> CheckpointInfo:
    """Give a student its MASK token, unless it has one, and return its info with the marker of this recipe.

    Raises: InputError when its marker is damaged.
    """
    if not recipe.diffuses:
        return info
    if info.dlm is None:
        mask_id = add_mask_token(model, tokenizer, recipe.diffusion.mask_token)
    else:
        mask_id = DiffusionMarker.of(info.dlm, "model.source").mask_token_id
    settings = recipe.diffusion
    marker = DiffusionMarker(mask_id, settings.block_size, settings.shift, settings.variant, settings.rule.clean)
    return replace(info, dlm=marker.to_json())


def banned_token(info: CheckpointInfo | None) -> int | None:
    """Return the MASK of a diffusion model, which no objective may find probable, also when it is trained otherwise."""
    return None if info is None or info.dlm is None else DiffusionMarker.of(info.dlm, "model.source").mask_token_id


def views_of(recipe: Recipe, info: CheckpointInfo | None) -> dict[str, View]:
    """Return how the views of the batch are made that the recipe's objectives ask for."""
    banned = banned_token(info)
    if not recipe.diffuses or banned is None:
        return {}
    return {NOISED_VIEW: noised_view(recipe.diffusion, banned, recipe.seed)}


def match_student(teacher: nn.Module, tokenizer: Any, student_tokenizer: Any, info: CheckpointInfo | None) -> None:
    """Give the teacher of a diffusion model the same MASK: it is never asked for it, but then token ids correspond."""
    if info is not None and info.dlm is not None and tokenizer.mask_token_id is None:
        add_mask_token(teacher, tokenizer, student_tokenizer.mask_token)
