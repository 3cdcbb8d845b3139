"""What the embedding and head are written as, fitted for the inputs that the head of this model really gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wrinklefree.artifact.tables import QuantizedTable, TableFormat, quantize_table
from wrinklefree.data.python_docs import HELD_OUT_TOPICS, topics
from wrinklefree.export.walk import Table, walk
from wrinklefree.quant.bitlinear import full_strength

# Formats whose rounding is worth a look at the head's inputs: their steps are coarse.
MOMENT_FORMATS: tuple[TableFormat, ...] = ("q6", "q4")
# Twice as many change the loss of a 4-bit head by less than its standard error.
MOMENT_TOKENS = 512
_WINDOW = 128


def quantized_tables(
    model: torch.nn.Module, format: TableFormat, moments: NDArray[np.float64] | None = None
) -> dict[str, QuantizedTable]:
    """Return each table of a converted model in ``format``, under its name.

    ``moments`` (`head_moments`) are for the table that serves as head; an untied embedding is only looked up.
    """
    tables = [entry for entry in walk(model) if isinstance(entry, Table)]
    head = tables[-1].name if len(tables) == 1 else "lm_head"
    return {t.name: quantize_table(t.values(), format, moments if t.name == head else None) for t in tables}


def head_moments(model: torch.nn.Module, encode: Callable[[str], list[int]]) -> NDArray[np.float64]:
    """Return E[x x^T] ``[D, D]`` of the vectors x that the head multiplies, over a short bundled text.

    ``encode`` is the model's tokenizer. A text of any kind serves: what matters is which few dimensions are large, and
    that is a property of the model.
    """
    windows = []
    for document in topics():
        ids = encode(document.text)[:_WINDOW]
        if len(ids) > 1 and document.id not in HELD_OUT_TOPICS:
            windows.append(ids)
        if sum(map(len, windows)) >= MOMENT_TOKENS:
            break
    seen: list[NDArray[np.float32]] = []

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        # The first position has no context: its vector is unlike all others in many models, and far longer.
        seen.append(inputs[0][0, 1:].float().cpu().numpy())

    device = next(model.parameters()).device
    context = int(getattr(model.config, "max_position_embeddings", _WINDOW))
    hook = model.get_output_embeddings().register_forward_pre_hook(keep)  # type: ignore[operator]
    try:
        with full_strength(model), torch.no_grad():
            for ids in windows:
                model(input_ids=torch.tensor([ids[:context]], device=device), use_cache=False)
    finally:
        hook.remove()
    inputs = np.concatenate(seen).astype(np.float64)
    return inputs.T @ inputs / len(inputs)
