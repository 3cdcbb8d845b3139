"""Running decoder layers on their own: inputs, outputs, Gram matrices of what enters a projection.

Shapes: N sequences, T tokens, D hidden, I input features of a projection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.models.subln import decoder_layers
from wrinklefree.quant.activation import fake_quantize_activation

# Sequences that run through a layer at once when nothing is trained.
_RUN_SEQUENCES = 8


_SHARED = ("attention_mask", "position_ids", "position_embeddings")


@dataclass(frozen=True)
class BlockRunner:
    """What the model hands each decoder layer beside the states (mask, positions, rotary tables), and the dtype of
    matrix products. ``keywords`` is by `id` of the layer: some families give their kinds of layers different ones.
    """

    keywords: dict[int, dict[str, Any]]
    dtype: torch.dtype

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, sequences: Tensor, dtype: torch.dtype) -> tuple[BlockRunner, Tensor]:
        """Return the runner and what the first layer gets for ``sequences``: the embedded tokens [N, T, D]."""
        body, layers = model.get_submodule("model"), decoder_layers(model)
        keywords: dict[int, dict[str, Any]] = {}
        embedded: list[Tensor] = []

        def keep(layer: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
            keywords[id(layer)] = {name: _wide(given.get(name)) for name in _SHARED}

        def collect(layer: nn.Module, inputs: tuple[Any, ...], given: dict[str, Any]) -> None:
            embedded.append((inputs[0] if inputs else given["hidden_states"]).float())
            raise _Collected

        handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers]
        try:
            body(input_ids=sequences[:1], use_cache=False)
            handles.append(layers[0].register_forward_pre_hook(collect, with_kwargs=True))
            for part in sequences.split(_RUN_SEQUENCES):
                _until_collected(lambda part=part: body(input_ids=part, use_cache=False))  # type: ignore[misc]
        finally:
            for handle in handles:
                handle.remove()
        # The last hooks saw another number of sequences; masks without padding are the same for each.
        return cls({key: _one_row(kept) for key, kept in keywords.items()}, dtype), torch.cat(embedded)

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``layer(x)`` for ``x [n, T, D]``, causal, products in `dtype`, the residual stream in float32."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: Tensor | tuple[Tensor, ...] = layer(x, **self.keywords[id(layer)])
        return (output[0] if isinstance(output, tuple) else output).float()

    @torch.no_grad()
    def all(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Return ``layer(x)`` for all sequences ``x [N, T, D]``."""
        # Into one tensor: joining parts at the end would hold everything twice.
        outputs = torch.empty_like(x)
        for part, into in zip(x.split(_RUN_SEQUENCES), outputs.split(_RUN_SEQUENCES), strict=True):
            into.copy_(self.forward(layer, part))
        return outputs

    @torch.no_grad()
    def gram(self, layer: nn.Module, projection: nn.Module, x: Tensor) -> Tensor:
        """Return sum of u u^T, float32 ``[I, I]``, over the int8-rounded inputs u of ``projection`` in ``layer``."""
        total: list[Tensor] = []

        def add(rows: Tensor) -> None:
            rounded = fake_quantize_activation(rows, 1.0)
            product = rounded.t() @ rounded
            if total:
                total[0] += product
            else:
                total.append(product)

        self.visit_inputs(layer, projection, x, add)
        return total[0]

    @torch.no_grad()
    def visit_inputs(self, layer: nn.Module, projection: nn.Module, x: Tensor, visit: Callable[[Tensor], None]) -> None:
        """Hand ``visit`` the inputs of ``projection``, float32 ``[n, I]``, part by part, as ``layer`` runs on ``x``."""

        def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            with torch.autocast(inputs[0].device.type, enabled=False):
                visit(inputs[0].float().flatten(0, -2))
            raise _Collected

        # Behind the norm of SubLN, which is a pre-hook too: hooks run in the order they were registered.
        handle = projection.register_forward_pre_hook(collect)
        try:
            for part in x.split(_RUN_SEQUENCES):
                _until_collected(lambda part=part: self.forward(layer, part))  # type: ignore[misc]
        finally:
            handle.remove()


def _wide(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_wide(each) for each in value)
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _one_row(kept: dict[str, Any]) -> dict[str, Any]:
    mask = kept["attention_mask"]
    return kept if mask is None else {**kept, "attention_mask": mask[:1]}


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
