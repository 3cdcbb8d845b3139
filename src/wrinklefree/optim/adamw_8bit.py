"""AdamW with both moments in 8 bits: the only file that knows bitsandbytes' optimizers."""

from __future__ import annotations

from typing import Any

import torch

from wrinklefree.errors import MissingDependencyError


def adamw_8bit(
    groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return bitsandbytes' AdamW over ``groups``; block-wise 8-bit moments for tensors of 4,096 numbers or more.

    Raises: MissingDependencyError when bitsandbytes is not installed.
    Source: arXiv 2110.02861 (block-wise dynamic quantisation).
    """
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingDependencyError(
            f"optimizer adamw_8bit needs bitsandbytes ({error}); install it with: pip install 'wrinklefree[lowbit]'"
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    return optimizer
