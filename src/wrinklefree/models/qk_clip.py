"""QK-clip: watch the largest attention logit of every head in the real forward, and scale queries and keys back.

    S_h = max over the batch and all pairs (i, j) that the mask lets through of  scaling * q_i . k_j      (head h)
    gamma_h = min(1, tau / S_h):  the logits of head h shall shrink by gamma_h

q and k are the ones attention uses: after bias, QK-norm and rotary embedding, and before a soft cap. Which parameters
are scaled depends on what they are shared by:

- one key head for each query head:  W_q^h *= gamma_h^alpha,  W_k^h *= gamma_h^(1 - alpha)              (the paper)
- a key head g for several query heads (grouped-query attention):  W_k^g *= kappa_g = min over the group of
  gamma_h^(1 - alpha), and W_q^h *= gamma_h / kappa_g. So each head's logits shrink by its own gamma_h; those of a head
  that is not over the threshold stay what they are. With one head in a group this is the rule above.
- QK-norm (Qwen3, Gemma 3) undoes any scale of W_q and W_k, and its gains are shared by all heads of a layer:
  gain_q *= gamma^alpha, gain_k *= gamma^(1 - alpha) with the smallest gamma of the layer.
- one ternary scale for a whole matrix (granularity ``tensor``): scaling some rows would turn their codes to zero
  instead of shrinking them, so the whole matrices are scaled, with the smallest gamma of the layer.

A layer's bias, the learned scales of a ternary layer and the outputs of its low-rank correction are scaled with the
rows of its latents, so codes stay.

Source: arXiv 2507.20534, section 2.1 (MuonClip). Differs: the rules for shared parameters, which the paper lacks.
Shapes: B batch, T tokens, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wrinklefree.errors import InputError
from wrinklefree.models.subln import decoder_layers
from wrinklefree.quant.bitlinear import BitLinear

_CHUNK_BYTES = 64 * 2**20  # of float32 logits held at once while their maximum is taken
_ATTRIBUTE = "_logit_watch"


@dataclass
class LogitWatch:
    """The largest logits of one attention module since `reset`; filled by its hooks while ``active``.

    ``maximum``: float32 [H], None before the first forward.
    """

    attention: nn.Module
    active: bool = False
    maximum: Tensor | None = None
    _states: dict[str, Tensor] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def reset(self, active: bool) -> None:
        """Forget what was seen, and watch from now on or not."""
        self.active, self.maximum = active, None
        self._states.clear()

    def attach(self) -> None:
        """Register the three hooks, in the place of those of an earlier watch."""
        earlier = getattr(self.attention, _ATTRIBUTE, None)
        if isinstance(earlier, LogitWatch):
            earlier.detach()
        for name in ("q_proj", "k_proj"):
            hook = _Keep(self, name)
            self._handles.append(self.attention.get_submodule(name).register_forward_hook(hook))
        self._handles.append(self.attention.register_forward_hook(_Measure(self), with_kwargs=True))
        # Not through nn.Module's own setattr, which would be right too, but says less: this is no part of the model.
        object.__setattr__(self.attention, _ATTRIBUTE, self)

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._states.clear()

    def keep(self, name: str, output: Tensor) -> None:
        """Keep a projection's output [B, T, heads E] for the end of this forward."""
        if self.active:
            self._states[name] = output.detach()

    @torch.no_grad()
    def measure(self, hidden: Tensor, position: tuple[Tensor, Tensor] | None, mask: Any) -> None:
        """Take the forward that ends here into the maximum."""
        if not self.active or len(self._states) < 2:
            return
        size = int(self.attention.head_dim)  # type: ignore[arg-type]
        queries, keys = (
            _heads(self.attention, name, self._states.pop(f"{name}_proj"), size, position) for name in ("q", "k")
        )
        allowed = _allowed(mask, queries.shape[2], keys.shape[2], hidden.device)
        found = max_logits(queries, keys, allowed, float(self.attention.scaling))  # type: ignore[arg-type]
        self.maximum = found if self.maximum is None else torch.maximum(self.maximum, found)


class _Keep:
    """Hooks are objects, so that a copied model has copies of its watches and leaves the original's alone."""

    def __init__(self, watch: LogitWatch, name: str) -> None:
        self.watch, self.name = watch, name

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.watch.keep(self.name, output)


class _Measure:
    def __init__(self, watch: LogitWatch) -> None:
        self.watch = watch

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        self.watch.measure(hidden, kwargs.get("position_embeddings"), kwargs.get("attention_mask"))


def watch_logits(model: nn.Module) -> list[LogitWatch]:
    """Attach a watch to the attention of every decoder layer; again on the same model replaces the hooks.

    Raises: InputError when a layer's attention has no separate projections of queries and keys.
    """
    watches = []
    for index, layer in enumerate(decoder_layers(model)):
        attention = getattr(layer, "self_attn", None)
        if not all(hasattr(attention, name) for name in ("q_proj", "k_proj", "head_dim", "scaling")):
            raise InputError(f"layer {index}: QK-clip needs self_attn with q_proj, k_proj, head_dim and scaling")
        watches.append(LogitWatch(attention))  # type: ignore[arg-type]
    for watch in watches:
        watch.attach()
    return watches


def max_logits(queries: Tensor, keys: Tensor, allowed: Tensor, scaling: float) -> Tensor:
    """Return float32 [H]: the largest scaled logit of each head over the allowed pairs.

    ``queries`` [B, H, T, E], ``keys`` [B, K, T, E] in any float dtype; ``allowed`` bool, broadcasts to [B, 1, T, T].
    """
    batch, heads, length, _ = queries.shape
    shared = heads // keys.shape[1]
    allowed = allowed.expand(batch, -1, -1, -1)
    rows = max(1, _CHUNK_BYTES // (4 * heads * length * keys.shape[2]))
    found = []
    for first in range(0, batch, rows):
        part = slice(first, first + rows)
        query = queries[part].float().unflatten(1, (-1, shared))
        logits = query @ keys[part].float().unsqueeze(2).transpose(-1, -2)
        logits.masked_fill_(~allowed[part].unsqueeze(1), -torch.inf)
        found.append(logits.amax(dim=(0, 3, 4)).flatten())
    return torch.stack(found).amax(dim=0) * scaling


@torch.no_grad()
def clip_attention(attention: nn.Module, maximum: Tensor, threshold: float, alpha: float) -> int:
    """Scale the queries and keys of one attention module so that logits like ``maximum`` [H] reach ``threshold``.

    Return how many heads were over it. Heads whose maximum is not finite are left alone.
    """
    over = (maximum > threshold) & torch.isfinite(maximum)
    clipped = int(over.sum())
    if not clipped:
        return 0
    gamma = torch.where(over, threshold / maximum, 1.0)
    queries, keys = attention.get_submodule("q_proj"), attention.get_submodule("k_proj")
    if hasattr(attention, "q_norm"):
        smallest = gamma.min()
        _scale_gain(attention.get_submodule("q_norm"), smallest**alpha)
        _scale_gain(attention.get_submodule("k_norm"), smallest ** (1 - alpha))
        return clipped
    size = int(attention.head_dim)  # type: ignore[arg-type]
    if _one_scale(queries) or _one_scale(keys):
        gamma = gamma.min().expand_as(gamma)
    grouped = gamma.unflatten(0, (_out_features(keys) // size, -1))
    kappa = (grouped ** (1 - alpha)).amin(dim=1)
    _scale_rows(queries, (grouped / kappa[:, None]).flatten().repeat_interleave(size))
    _scale_rows(keys, kappa.repeat_interleave(size))
    return clipped


def _heads(
    attention: nn.Module, name: str, output: Tensor, size: int, position: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return a projection's output [B, T, heads E] as attention uses it: float32 [B, heads, T, E]."""
    states = output.float().unflatten(-1, (-1, size))
    norm = getattr(attention, f"{name}_norm", None)
    if norm is not None:
        states = norm.forward(states)  # not the module: another's hooks must not see this
    states = states.transpose(1, 2)
    if position is None:
        return states
    cos, sin = (each.float().unsqueeze(1) for each in position)
    if cos.shape[-1] != size:
        raise InputError(f"QK-clip: rotary embedding of {cos.shape[-1]} of {size} dimensions is not supported")
    half = size // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos + turned * sin


def _allowed(mask: Any, queries: int, keys: int, device: torch.device) -> Tensor:
    """Return bool [B or 1, 1, T, T] of an attention mask: bool, additive, or None for causal."""
    if mask is None:
        return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)[None, None]
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        raise InputError(
            f"QK-clip: cannot read a mask of type {type(mask).__name__}; use attention implementation sdpa or eager"
        )
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _one_scale(linear: nn.Module) -> bool:
    return isinstance(linear, BitLinear) and linear.spec.granularity == "tensor"


def _out_features(linear: nn.Module) -> int:
    if not isinstance(linear, nn.Linear):
        raise InputError(f"QK-clip: found {type(linear).__name__}, only nn.Linear and BitLinear can be scaled")
    return linear.out_features


def _scale_rows(linear: nn.Module, factor: Tensor) -> None:
    """Multiply the outputs of a linear layer by ``factor`` [O]: every parameter that has its rows."""
    _out_features(linear)
    for name in ("weight", "bias", "weight_scale", "low_rank_u"):
        parameter = getattr(linear, name, None)
        if isinstance(parameter, Tensor):
            # A scale for the whole matrix, [1], goes with factors that are all the same.
            rows = factor[:1] if parameter.shape[0] == 1 else factor
            _multiply(parameter, rows.view(-1, *[1] * (parameter.ndim - 1)))


def _scale_gain(norm: nn.Module, factor: Tensor) -> None:
    """Multiply the gain of a QK-norm; some families store the gain less one, which is seen by what it does."""
    weight = norm.weight
    assert isinstance(weight, Tensor)
    ones = torch.ones(weight.shape, dtype=torch.float32, device=weight.device)
    less_one = bool((norm.forward(ones) - weight.float()).mean() > 0.5)
    if less_one:
        weight.copy_((1.0 + weight.float()) * factor - 1.0)
    else:
        _multiply(weight, factor)


def _multiply(parameter: Tensor, factor: Tensor) -> None:
    """Multiply in place; a sharded parameter takes its own part of the factor."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    factor = factor.to(parameter.device)
    if isinstance(parameter, DTensor):
        whole = factor.expand(parameter.shape).contiguous()
        factor = distribute_tensor(whole, parameter.device_mesh, parameter.placements)
    parameter.copy_(parameter.float() * factor)
