"""A ternary decoder layer as one differentiable function: products in bfloat16, everything between them fused.

Forward and backward are written out for the layers of Llama and its kin: RMSNorm, attention with rotary embedding and
shared key heads, a SiLU-gated MLP. Between the matrix products each tensor is read and written once (`quant.passes`),
the weights are rounded once, and what the backward needs of an input is kept transposed, because a product of a
transposed left side takes twice the time.

It computes what the layer computes under bfloat16 autocast, but for roundings: activations are rounded to int8 from
float32 values where the plain layer rounds bfloat16 ones, and probabilities of the backward come from scores in
bfloat16. Where it does not apply (see `FusedForward.refusal`) the layer's own forward runs.

Shape letters: B batch, T tokens, N = B T, D hidden, F inner, H query heads, K key heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wrinklefree.quant import passes as p
from wrinklefree.quant.bitlinear import BitLinear

# (transformers' class, its epsilon's name): layers whose forward is exactly what is written out here.
_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_BF16 = torch.bfloat16


class _Weights:
    """The rounded weights of a layer, joined where layers read the same input, and the scales they were made with."""

    def __init__(self, layers: dict[str, BitLinear]) -> None:
        self.scales = {name: p.weight_scale(layer) for name, layer in layers.items()}
        self.qkv = self._joined(layers, "q_proj", "k_proj", "v_proj")
        self.o = self._joined(layers, "o_proj")
        self.gate_up = self._joined(layers, "gate_proj", "up_proj")
        self.down = self._joined(layers, "down_proj")

    def _joined(self, layers: dict[str, BitLinear], *names: str) -> Tensor:
        chosen = [layers[name] for name in names]
        out = torch.empty(sum(layer.out_features for layer in chosen), chosen[0].in_features, dtype=_BF16)
        first = 0
        for name, layer in zip(names, chosen, strict=True):
            p.quantize_weight(layer, *self.scales[name], out[first : first + layer.out_features])
            first += layer.out_features
        return out


class FusedForward:
    """The forward of a decoder layer; an instance stands in for ``layer.forward``.

    ``fallen``: is told why, when the layer's own forward runs instead.
    """

    def __init__(self, layer: nn.Module, fallen: Callable[[str], None]) -> None:
        self.layer, self.own, self.fallen = layer, layer.forward, fallen
        attention: Any = layer.get_submodule("self_attn")
        self.attention = attention
        self.heads = attention.config.num_attention_heads
        self.key_heads = attention.config.num_key_value_heads
        self.linears = dict(_linears(layer))
        self.norms: list[Any] = [layer.input_layernorm, layer.post_attention_layernorm]
        self.held: tuple[object, _Weights] | None = None

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        reason = self.refusal(hidden_states, attention_mask, others)
        if reason is not None:
            self.fallen(reason)
            return self.own(hidden_states, attention_mask=attention_mask, **others)
        cosines, sines = others["position_embeddings"]
        parameters = [self.norms[0].weight, self.norms[1].weight]
        for layer in self.linears.values():
            parameters += [layer.weight, layer.weight_scale]
        fused: Tensor = _Layer.apply(
            hidden_states, self, attention_mask, cosines.contiguous(), sines.contiguous(), *parameters
        )
        return fused

    def refusal(self, x: Tensor, mask: Tensor | None, others: dict[str, Any]) -> str | None:
        """Return why this call cannot be fused, or None."""
        embeddings = others.get("position_embeddings")
        strength = next(iter(self.linears.values())).strength
        if strength.value != 1.0:
            return "strength below 1"
        if x.device.type != "cpu" or x.dtype is not torch.float32:
            return "states that are not float32 in the processor's memory"
        if not torch.is_autocast_enabled("cpu") or torch.get_autocast_dtype("cpu") is not _BF16:
            return "no bfloat16 precision"
        if others.get("past_key_values") is not None or others.get("output_attentions"):
            return "a key-value cache, or attention weights were asked for"
        if mask is None or mask.dtype is not torch.bool or tuple(mask.shape) != (x.shape[0], 1, x.shape[1], x.shape[1]):
            return "an attention mask that is not boolean [B, 1, T, T]"
        if embeddings is None or embeddings[0].dtype is not torch.float32 or embeddings[0].dim() != 3:
            return "no rotary embedding in float32"
        if self.attention.training and self.attention.attention_dropout:
            return "attention dropout"
        return _hooks(self.layer) or _not_plain(self.linears)

    def weights(self) -> _Weights:
        """Return the rounded weights; once for a `held_codes` block."""
        block = next(iter(self.linears.values())).strength.held
        if block is None:
            self.held = None
            return _Weights(self.linears)
        if self.held is None or self.held[0] is not block:
            self.held = block, _Weights(self.linears)
        return self.held[1]


class _Layer(torch.autograd.Function):
    """(states [B, T, D], plan, mask, cosines, sines, weights of norms, weight and scale of each linear) -> states."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: FusedForward, mask: Tensor, cosines: Tensor, sines: Tensor, *parameters: Tensor
    ) -> Tensor:
        batch, length, width = x.shape
        weights, back = plan.weights(), any(ctx.needs_input_grad)
        first, second = plan.norms
        flat = x.detach().reshape(-1, width)
        _, q1, q1_turned, factor1 = p.norm_quantize(flat, None, first.weight, first.variance_epsilon, back)
        joined = F.linear(q1, weights.qkv).view(batch, length, -1)
        q, k, v = p.split_heads(joined, cosines, sines, plan.heads, plan.key_heads)
        seen = torch.zeros(mask.shape, dtype=_BF16).masked_fill_(~mask, -torch.inf)
        mixed, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, False, attn_mask=seen, scale=plan.attention.scaling
        )
        mixed = mixed.transpose(1, 2).reshape(batch * length, -1)
        q_mixed, mixed_turned = p.quantize(mixed, False, back)
        attended = F.linear(q_mixed, weights.o)
        y, q2, q2_turned, factor2 = p.norm_quantize(flat, attended, second.weight, second.variance_epsilon, back)
        inner = F.linear(q2, weights.gate_up)
        q_inner, inner_turned = p.quantize(inner, True, back)
        out = torch.add(y, F.linear(q_inner, weights.down)).view_as(x)
        if back:
            ctx.plan, ctx.weights, ctx.shape = plan, weights, x.shape
            ctx.save_for_backward(
                flat, y, factor1, factor2, q1_turned, mixed_turned, q2_turned, inner_turned, inner, q, k, v,
                log_sum.transpose(1, 2).contiguous(), mask, cosines, sines,
            )  # fmt: skip
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        plan, weights = ctx.plan, ctx.weights
        (x, y, factor1, factor2, q1_turned, mixed_turned, q2_turned, inner_turned, inner, q, k, v, log_sum, mask,
         cosines, sines) = ctx.saved_tensors  # fmt: skip
        first, second = plan.norms
        upstream = gradients[0].reshape(x.shape).contiguous()
        found: dict[str, Tensor] = {}  # name -> gradient of its rounded weight [O, I]

        small = upstream.to(_BF16)
        found["down_proj"] = (inner_turned @ small).t()
        for_inner = p.gate_gradient(inner, small @ weights.down)
        _divide(found, plan.linears, _MLP[:2], (q2_turned @ for_inner).t())
        for_y, small_y, for_second = p.norm_gradient(
            y, factor2, second.weight, for_inner @ weights.gate_up, upstream, True
        )
        assert small_y is not None
        found["o_proj"] = (mixed_turned @ small_y).t()
        for_mixed = (small_y @ weights.o).view(ctx.shape[0], ctx.shape[1], plan.heads, -1)
        joined = _attention_backward(plan, for_mixed, q, k, v, mask, log_sum, cosines, sines)
        _divide(found, plan.linears, _ATTENTION[:3], (q1_turned @ joined).t())
        for_x, _, for_first = p.norm_gradient(x, factor1, first.weight, joined @ weights.qkv, for_y, False)
        return (
            for_x.view(ctx.shape), None, None, None, None, for_first, for_second,
            *_weight_gradients(plan.linears, weights, found, ctx.needs_input_grad[7:]),
        )  # fmt: skip


def _attention_backward(
    plan: FusedForward, upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, log_sum: Tensor,
    cosines: Tensor, sines: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient [N, (H + 2 K) E] of the joined projections from that of the mixed values [B, T, H, E].

    The query heads of a key head are rows of one product, so keys are never repeated and their gradients are sums.
    """
    batch, _, length, size = q.shape
    rows, keys = (batch * plan.key_heads, -1, size), (batch * plan.key_heads, length, size)
    queries, upstream = q.view(rows), upstream.transpose(1, 2).reshape(rows)
    flat_k, flat_v = k.view(keys), v.view(keys)
    probs = torch.bmm(queries, flat_k.transpose(1, 2))
    slopes = torch.bmm(upstream, flat_v.transpose(1, 2))
    p.attention_gradient(probs, slopes, mask, log_sum, plan.attention.scaling)
    for_v = torch.bmm(probs.transpose(1, 2), upstream).view_as(v)
    for_k = torch.bmm(slopes.transpose(1, 2), queries).view_as(k)
    for_q = torch.bmm(slopes, flat_k).view_as(q)
    return p.join_heads(for_q, for_k, for_v, cosines, sines).view(batch * length, -1)


def _divide(found: dict[str, Tensor], layers: dict[str, BitLinear], names: tuple[str, ...], joined: Tensor) -> None:
    sizes = [layers[name].out_features for name in names]
    found.update(zip(names, joined.split(sizes), strict=True))


def _weight_gradients(
    layers: dict[str, BitLinear], weights: _Weights, found: dict[str, Tensor], needed: tuple[bool, ...]
) -> Iterator[Tensor | None]:
    for i, (name, layer) in enumerate(layers.items()):
        wants, wants_scale = needed[2 * i : 2 * i + 2]
        if not wants and not wants_scale:
            yield from (None, None)
            continue
        latent, scale = p.weight_gradient(layer, *weights.scales[name], found.pop(name), wants_scale)
        yield latent if wants else None
        yield scale


def _linears(layer: nn.Module) -> Iterator[tuple[str, Any]]:
    for owner, names in (("self_attn", _ATTENTION), ("mlp", _MLP)):
        for name in names:
            yield name, getattr(getattr(layer, owner, None), name, None)


def _hooks(layer: nn.Module) -> str | None:
    inside = list(layer.modules())[1:]
    hooked = any(each._forward_hooks or each._forward_pre_hooks or each._backward_hooks for each in inside)
    return "hooks inside of the layer, or norms before projections (SubLN)" if hooked else None


def _not_plain(linears: dict[str, BitLinear]) -> str | None:
    for name, linear in linears.items():
        if linear.products is not None:
            return f"{name} computes in 8 bits"
        if linear.kept_columns is not None:
            return f"{name} keeps columns in full precision"
    return None


def unfusable(layer: nn.Module) -> str | None:
    """Return why a decoder layer can never be fused, or None."""
    if p.passes() is None:
        return "the compiled extension is missing or older than this"
    if type(layer).__name__ not in _LAYERS:
        return f"{type(layer).__name__} is not one of {', '.join(_LAYERS)}"
    for name, linear in _linears(layer):
        if type(linear) is not BitLinear or linear.bias is not None or linear.spec.quantizer != "absmean":
            return f"{name} is not a ternary layer without bias"
        if linear.weight.dtype is not torch.float32:
            return f"{name} is not float32"
    config: Any = layer.get_submodule("self_attn").config
    if config.hidden_act != "silu" or config._attn_implementation != "sdpa":
        return f"activation {config.hidden_act} and attention {config._attn_implementation}; silu and sdpa are known"
    return _hooks(layer)
