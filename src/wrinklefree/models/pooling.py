"""Where the head of a sequence classifier reads: the state of each row's last real token, by the mask alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError


def has_class_head(model: nn.Module) -> bool:
    """Return whether ``model`` is a sequence classifier."""
    return isinstance(getattr(model, "score", None), nn.Linear)


def refuse_classifier(model: nn.Module, place: str, instead: str) -> None:
    """Raise InputError for a classifier where a language model is needed; ``instead``: what to do."""
    if has_class_head(model):
        raise InputError(f"{place}: is a classifier, it predicts no tokens; {instead}")


def last_token(mask: Tensor) -> Tensor:
    """Return int64 [B], the last true place of each row of ``mask`` bool [B, T], wherever its padding is.

    A row without any gives 0: its state exists, though it means nothing.
    """
    places = torch.arange(mask.shape[1], device=mask.device)
    return (places * mask).argmax(dim=1)


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Return [B, D], the state of each row's last real token, of ``states`` [B, T, D] and ``mask`` bool [B, T]."""
    return states[torch.arange(len(states), device=states.device), last_token(mask)]
