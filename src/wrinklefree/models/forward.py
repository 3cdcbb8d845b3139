"""One forward of a Hugging Face causal model over packed documents, with what the objectives ask for.

The attention mask is causal (of a `BlockBatch`: that of its blocks) and never crosses a document; position ids restart
with each document. So a packed sequence gives the logits its documents give alone. The head is not applied unless
``"logits"`` is asked for: objectives apply it chunk by chunk, because ``[B, T, V]`` is the largest tensor of a step.

Shapes: B batch, T tokens, V vocabulary, D hidden, L decoder layers, H heads (query or key/value), E head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.block_attention import BlockBatch, block_mask, flex_block_mask
from wrinklefree.models.pooling import has_class_head
from wrinklefree.models.subln import decoder_layers

LOGITS = "logits"
HIDDEN = "hidden"
_QKV = "qkv:"


def qkv(layer: int) -> str:
    """Return the name under which the projection states of ``layer`` (negative: from the end) are asked for."""
    return f"{_QKV}{layer}"


def projections(want: frozenset[str]) -> set[int]:
    """Return the layers whose projection states ``want`` asks for."""
    return {int(name.removeprefix(_QKV)) for name in want if name.startswith(_QKV)}


@dataclass
class ForwardOutput:
    """What one forward produced.

    ``final`` [B, T, D]: states after the final norm, the input of ``head``. ``logits`` [B, T, V] or None.
    ``hidden_states``: L tensors [B, T, D], the residual stream after each decoder layer, before the final norm;
    the embedding is not among them. ``projections``: asked layer -> (q, k, v), each [B, T, H E], straight from
    the projection (before QK-norm and rotary embedding), key and value heads not repeated.
    ``norm``, ``head``: the model's own modules; a classifier's head is for `models.pooling.pooled` states.
    ``softcap`` c, where the model has one: its logits are c tanh(head(final) / c).
    """

    final: Tensor
    norm: nn.Module
    head: nn.Module
    softcap: float | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] = ()
    projections: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def document_mask(document_ids: Tensor) -> Tensor:
    """Return bool [B, 1, T, T], true where query i may see key j: j <= i and the same document.

    Padding (document -1) sees padding, so that no row is empty and softmax stays finite.
    """
    length = document_ids.shape[1]
    same = document_ids[:, :, None] == document_ids[:, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=document_ids.device).tril()
    return (same & causal)[:, None]


def windowed(mask: Tensor, window: int) -> Tensor:
    """Return ``mask`` [B, 1, T, T] without the keys ``window`` or more tokens before the query."""
    places = torch.arange(mask.shape[-1], device=mask.device)
    return mask & (places[None, :] > places[:, None] - window)


def soft_capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return c tanh(logits / c), or the logits as they are without a cap."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def forward(model: nn.Module, batch: TokenBatch, want: frozenset[str] = frozenset()) -> ForwardOutput:
    """Return the states of ``model`` over ``batch``; ``want`` holds ``LOGITS``, ``HIDDEN``, ``qkv(layer)``.

    Raises: InputError for a layer the model does not have.
    """
    layers = decoder_layers(model)
    asked = projections(want)
    for layer in asked:
        if not -len(layers) <= layer < len(layers):
            raise InputError(f"layer {layer}: the model has {len(layers)} layers (0 to {len(layers) - 1})")
    kept: dict[str, Tensor] = {}
    with _captured(layers, want, asked, kept):
        final = model.get_submodule("model")(
            input_ids=batch.input_ids,
            attention_mask=_mask_for(model, batch),
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
    classifies = has_class_head(model)
    head = model.get_submodule("score" if classifies else "lm_head")
    cap = None if classifies else getattr(model.config, "final_logit_softcapping", None)
    return ForwardOutput(
        final=final,
        norm=model.get_submodule("model.norm"),
        head=head,
        softcap=cap,
        logits=soft_capped(head(final), cap) if LOGITS in want else None,
        hidden_states=tuple(kept[f"{i}"] for i in range(len(layers))) if HIDDEN in want else (),
        projections={i: (kept[f"{i}.q"], kept[f"{i}.k"], kept[f"{i}.v"]) for i in asked},
    )


def forward_rows(model: nn.Module, batch: BlockBatch, rows: Sequence[int], store: Any) -> Tensor:
    """Return the states after the final norm, [R, D], of some ``rows`` (positions) of a batch of one sequence.

    The rows see what the batch's attention lets them see, with the keys and values that ``store`` has for the positions
    that are not among them (`models.block_states.KeyValueStore`), and leave their own there.
    """
    store.rows = torch.tensor(list(rows), device=batch.input_ids.device)
    mask = _for_attention(model, block_mask(batch)[:, :, store.rows])
    kinds = _checked_kinds(model, batch)
    states: Tensor = model.get_submodule("model")(
        input_ids=batch.input_ids[:, store.rows],
        attention_mask=dict.fromkeys(kinds, mask) if kinds else mask,
        position_ids=batch.position_ids[:, store.rows],
        past_key_values=store,
        use_cache=False,
    ).last_hidden_state[0]
    return states


def _mask_for(model: nn.Module, batch: TokenBatch) -> Any:
    """The mask in the form the model's layers take: one, or one for each kind of layer (full, sliding window)."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if isinstance(batch, BlockBatch):
        return _blocks_for(model, batch)
    mask = document_mask(batch.document_ids)
    if not kinds:
        return _for_attention(model, mask if window is None else windowed(mask, window))
    masks = {"full_attention": mask, "sliding_attention": windowed(mask, window) if window else mask}
    if kinds - masks.keys():
        raise InputError(f"config.layer_types: found {sorted(kinds - masks.keys())}, known are {', '.join(masks)}")
    return {kind: _for_attention(model, masks[kind]) for kind in sorted(kinds)}


def _blocks_for(model: nn.Module, batch: BlockBatch) -> Any:
    kinds = _checked_kinds(model, batch)
    if getattr(model.config, "_attn_implementation", "sdpa") == "flex_attention":
        mask = flex_block_mask(batch)
    else:
        mask = _for_attention(model, block_mask(batch))
    return dict.fromkeys(kinds, mask) if kinds else mask


def _checked_kinds(model: nn.Module, batch: BlockBatch) -> list[str]:
    """Return the kinds of layers of the model, after checking that no window cuts into the batch's documents."""
    window = getattr(model.config, "sliding_window", None)
    if window is not None and window <= int(batch.position_ids.max()):
        raise InputError(
            f"block diffusion: documents of {int(batch.position_ids.max()) + 1} tokens reach beyond the model's "
            f"sliding window of {window}, which has no meaning among noised tokens; use shorter sequences"
        )
    return sorted(set(getattr(model.config, "layer_types", None) or ()))


def _for_attention(model: nn.Module, mask: Tensor) -> Tensor:
    if getattr(model.config, "_attn_implementation", "sdpa") == "sdpa":
        return mask
    # Eager attention adds its mask to the scores.
    dtype = next(model.parameters()).dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


@contextmanager
def _captured(layers: nn.ModuleList, want: frozenset[str], asked: set[int], kept: dict[str, Tensor]) -> Iterator[None]:
    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            kept[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = []
    if HIDDEN in want:
        handles += [layer.register_forward_hook(keep(f"{i}")) for i, layer in enumerate(layers)]
    for index in asked:
        attention = layers[index].self_attn
        for name in ("q", "k", "v"):
            projection = attention.get_submodule(f"{name}_proj")  # type: ignore[union-attr]
            handles.append(projection.register_forward_hook(keep(f"{index}.{name}")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
