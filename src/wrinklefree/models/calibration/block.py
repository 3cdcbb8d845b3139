"""Running decoder layers on their own: inputs, outputs, Gram matrices of what enters a projection.

Shapes: N sequences, T tokens, D hidden, I input features of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.quant.activation import fake_quantize_activation

# Sequences that run through a layer at once when nothing is trained.
_RUN_SEQUENCES = 8


@dataclass(frozen=True)
class BlockRunner:
    """What every decoder layer of one model shares: rotary tables, positions, the dtype of matrix products."""

    position_ids: Tensor
    rotary: tuple[Tensor, Tensor]
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, sequences: Tensor, dtype: torch.dtype) -> tuple[BlockRunner, Tensor]:
        """Return the runner and the embedded ``sequences`` [N, T, D]."""
        body: Any = model.get_submodule("model")
        with torch.no_grad():
            embedded = body.embed_tokens(sequences).float()
            positions = torch.arange(sequences.shape[1], device=sequences.device)[None]
            rotary = body.rotary_emb(embedded, position_ids=positions)
        return cls(positions, rotary, dtype), embedded

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``layer(x)`` for ``x [n, T, D]``, causal, products in `dtype`, the residual stream in float32."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: Tensor = layer(
                x, attention_mask=None, position_ids=self.position_ids, position_embeddings=self.rotary
            )
        return output.float()

    @torch.no_grad()
    def all(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``layer(x)`` for all sequences ``x [N, T, D]``."""
        return torch.cat([self.forward(layer, part) for part in x.split(_RUN_SEQUENCES)])

    @torch.no_grad()
    def gram(self, layer: nn.Module, projection: nn.Module, x: Tensor) -> Tensor:
        """Return sum of u u^T, float32 ``[I, I]``, over the int8-rounded inputs u of ``projection`` in ``layer``."""
        total: list[Tensor] = []

        def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            with torch.autocast(inputs[0].device.type, enabled=False):
                rows = fake_quantize_activation(inputs[0].float(), 1.0).flatten(0, -2)
                product = rows.t() @ rows
            if total:
                total[0] += product
            else:
                total.append(product)
            raise _Collected

        # Behind the norm of SubLN, which is a pre-hook too: hooks run in the order they were registered.
        handle = projection.register_forward_pre_hook(collect)
        try:
            for part in x.split(_RUN_SEQUENCES):
                _until_collected(lambda part=part: self.forward(layer, part))  # type: ignore[misc]
        finally:
            handle.remove()
        return total[0]


class _Collected(Exception):
    """Ends a layer's forward once what it was run for has been seen."""


def _until_collected(run: Callable[[], object]) -> None:
    try:
        run()
    except _Collected:
        return


def relative_error(output: Tensor, target: Tensor) -> float:
    """Return |output - target|^2 / |target|^2."""
    return float((output - target).square().mean() / target.square().mean())
