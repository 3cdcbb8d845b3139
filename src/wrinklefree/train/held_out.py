"""How well a task was learned: the held-out examples, each seen once, at full quantisation strength."""

from __future__ import annotations

import torch
from torch import nn

from wrinklefree.data.supervised import SupervisedData
from wrinklefree.models.forward import LOGITS, forward
from wrinklefree.objectives.base import Context
from wrinklefree.objectives.classification import Classification
from wrinklefree.quant.bitlinear import full_strength, held_codes

_ROWS = 16


@torch.no_grad()
def held_out_figures(model: nn.Module, data: SupervisedData) -> dict[str, float]:
    """Return ``examples``, ``loss`` (nats, or squared error, of an example or a completion's token) and ``accuracy``
    (of classes, or of the completion's tokens one by one); only ``examples`` when nothing is held out.
    """
    device = next(model.parameters()).device
    sums: dict[str, float] = {}
    count, examples = 0, data.held_out
    with full_strength(model), held_codes(model):
        for start in range(0, len(examples), _ROWS):
            batch = examples.batch(range(start, min(start + _ROWS, len(examples)))).to(device)
            if examples.classes is None:
                rows = batch.selection()
                logits = forward(model, batch, frozenset({LOGITS})).logits
                assert logits is not None
                scored = logits.flatten(0, 1)[rows.states].float()
                found = {
                    "loss": nn.functional.cross_entropy(scored, rows.targets, reduction="sum"),
                    "accuracy": (scored.argmax(dim=1) == rows.targets).float().sum(),
                }
                count += len(rows.targets)
            else:
                result = Classification().loss(Context(batch, forward(model, batch)))
                found = {"loss": result.sum, **result.metrics}
                count += result.count
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return {"examples": float(len(examples)), **{name: value / max(count, 1) for name, value in sums.items()}}
