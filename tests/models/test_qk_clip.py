"""QK-clip: logits seen against those attention really computes; after a clip the same batch stays under the threshold.

Which pairs count, which parameters a clip scales (plain, grouped-query, QK-norm, ternary of every granularity), and
that watching neither changes the model nor happens twice.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from wrinklefree.data.batch import TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.convert import convert_model
from wrinklefree.models.forward import document_mask, forward
from wrinklefree.models.qk_clip import LogitWatch, clip_attention, watch_logits
from wrinklefree.quant.bitlinear import bit_linears
from wrinklefree.quant.low_rank import add_factors, low_rank_linears
from wrinklefree.quant.ternary import TernarySpec

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.3,
    "tie_word_embeddings": True,
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama_mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        {"query_pre_attn_scalar": 8, "layer_types": ["full_attention"] * 2},
    ),
}


def build(kind: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model_class, config_class, own = KINDS[kind]
    model = model_class(config_class(**{**SIZES, **own, **changes})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "_norm." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch(documents: bool = True, length: int = 12) -> TokenBatch:
    ids = torch.randint(0, 64, (3, length), generator=torch.Generator().manual_seed(5))
    numbers = torch.zeros(3, length, dtype=torch.int32)
    positions = torch.arange(length).repeat(3, 1)
    if documents:
        numbers[0, 5:], numbers[1, 9:] = 1, -1
        positions[0, 5:] -= 5
    return TokenBatch(ids, ids.clone(), positions, numbers)


@pytest.fixture
def scores() -> Iterator[list[Tensor]]:
    """The scaled logits [B, H, T, T] that attention computes, in the order of the layers."""
    seen: list[Tensor] = []

    def attention(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **_: Any
    ) -> Any:
        groups = query.shape[1] // key.shape[1]
        logits = query @ key.repeat_interleave(groups, dim=1).transpose(-1, -2) * scaling
        seen.append(logits.detach().float())
        weights = (logits if mask is None else logits + mask).softmax(dim=-1)
        return (weights @ value.repeat_interleave(groups, dim=1)).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS["seen_by_the_test"] = attention
    yield seen
    del ALL_ATTENTION_FUNCTIONS["seen_by_the_test"]


def observe(model: nn.Module, watches: list[LogitWatch], data: TokenBatch) -> list[Tensor]:
    for watch in watches:
        watch.reset(active=True)
    forward(model, data)
    found = [watch.maximum for watch in watches]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_seen_is_the_largest_logit_of_allowed_pairs(
    kind: str, dtype: torch.dtype, scores: list[Tensor]
) -> None:
    model = build(kind).to(dtype)
    model.set_attn_implementation("seen_by_the_test")
    data = batch()
    found = observe(model, watch_logits(model), data)
    allowed = document_mask(data.document_ids)
    assert len(scores) == len(found) == 2
    for real, seen in zip(scores, found, strict=True):
        expected = real.masked_fill(~allowed, -math.inf).amax(dim=(0, 2, 3))
        assert seen.dtype == torch.float32
        # bfloat16: attention rounds q, k and the logit to 8 bits, the watch computes from projections in float32.
        assert torch.allclose(seen, expected, rtol=1e-4 if dtype == torch.float32 else 4e-2, atol=1e-4)
        assert not torch.allclose(seen, real.amax(dim=(0, 2, 3)), rtol=1e-2), "masked pairs must matter to this test"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_several_forwards_and_chunks_of_the_batch_are_one_maximum(
    implementation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("llama")
    model.set_attn_implementation(implementation)
    watches = watch_logits(model)
    data = batch()
    whole = observe(model, watches, data)
    monkeypatch.setattr("wrinklefree.models.qk_clip._CHUNK_BYTES", 1)
    assert all(torch.equal(a, b) for a, b in zip(whole, observe(model, watches, data), strict=True))
    for watch in watches:
        watch.reset(active=True)
    for row in range(3):
        forward(model, TokenBatch(*(each[row : row + 1] for each in (
            data.input_ids, data.labels, data.position_ids, data.document_ids))))  # fmt: skip
    for watch, expected in zip(watches, whole, strict=True):
        assert watch.maximum is not None and torch.allclose(watch.maximum, expected, rtol=1e-5)


def test_without_a_mask_the_model_is_causal() -> None:
    model = build("llama")
    watches = watch_logits(model)
    data = batch(documents=False)
    found = observe(model, watches, data)
    for watch in watches:
        watch.reset(active=True)
    model(data.input_ids, use_cache=False)
    for watch, expected in zip(watches, found, strict=True):
        assert watch.maximum is not None and torch.allclose(watch.maximum, expected, rtol=1e-5)


def clip(watches: list[LogitWatch], found: list[Tensor], threshold: float, alpha: float = 0.5) -> int:
    return sum(
        clip_attention(watch.attention, maximum, threshold, alpha)
        for watch, maximum in zip(watches, found, strict=True)
    )


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_t8_after_a_clip_the_same_batch_stays_under_the_threshold(kind: str, alpha: float) -> None:
    # One layer: the input of the clipped projections does not change, so the bound holds to float32 rounding.
    model = build(kind, num_hidden_layers=1, **({"layer_types": ["full_attention"]} if kind == "gemma3" else {}))
    watches, data = watch_logits(model), batch()
    (before,) = observe(model, watches, data)
    threshold = float(before.sort().values[-2:].mean())  # some heads are over it, some are not
    assert clip(watches, [before], threshold, alpha) == 1
    (after,) = observe(model, watches, data)
    assert float(after.max()) == pytest.approx(threshold, rel=1e-4)
    if kind in ("qwen3", "gemma3"):
        assert torch.allclose(after, before * threshold / before.max(), rtol=1e-4)  # one factor for all heads
    else:
        assert torch.allclose(after, before.clamp(max=threshold), rtol=1e-4)  # heads under the threshold stay


def test_t8_clipping_every_layer_holds_in_a_deep_model_too() -> None:
    # A clip in one layer changes the inputs of the next ones, so a single clip need not be enough for those.
    model = build("qwen3", num_hidden_layers=4)
    watches, data = watch_logits(model), batch()
    threshold = 0.5 * float(torch.stack(observe(model, watches, data)).max())
    for _ in range(3):
        clip(watches, observe(model, watches, data), threshold)
    assert float(torch.stack(observe(model, watches, data)).max()) <= threshold * 1.01


def test_grouped_query_factors_are_as_derived() -> None:
    """Two queries on each key: S = (8, 4 | 2, 1), tau = 2: gamma = (1/4, 1/2 | 1, 1), kappa = (1/2 | 1)."""
    attention = build("llama").get_submodule("model.layers.0.self_attn")
    before = {name: attention.get_submodule(f"{name}_proj").weight.detach().clone() for name in "qk"}
    assert clip_attention(attention, torch.tensor([8.0, 4.0, 2.0, 1.0]), 2.0, 0.5) == 2
    factors = {
        name: (attention.get_submodule(f"{name}_proj").weight / before[name]).unflatten(0, (-1, 16)).mean(dim=(1, 2))
        for name in "qk"
    }
    assert torch.allclose(factors["q"], torch.tensor([0.5, 1.0, 1.0, 1.0]))
    assert torch.allclose(factors["k"], torch.tensor([0.5, 1.0]))


@pytest.mark.parametrize("learned", [False, True], ids=["absmean", "learned and corrected"])
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("granularity", ["tensor", "row", "group"])
def test_t8_a_ternary_layer_is_clipped_at_every_granularity(granularity: Any, strength: float, learned: bool) -> None:
    model = build("qwen2", num_hidden_layers=1, hidden_size=128)  # two groups in a row
    convert_model(model, TernarySpec(granularity, 64), strength=strength)
    if learned:
        for _, layer in bit_linears(model):
            layer.set_scale(layer.ternary()[1] * 1.3)
        add_factors(model, {name: 2 for name, _ in bit_linears(model)})
        for _, corrected in low_rank_linears(model):
            nn.init.normal_(corrected.low_rank_u, std=0.3)
    codes = [layer.ternary()[0] for _, layer in bit_linears(model)]
    watches, data = watch_logits(model), batch()
    (before,) = observe(model, watches, data)
    threshold = float(before.sort().values[-2:].mean())
    assert clip(watches, [before], threshold) == 1
    (after,) = observe(model, watches, data)
    # Group scales are stored in float16, so each of q and k may be off by 2^-11 after scaling.
    assert float(after.max()) == pytest.approx(threshold, rel=2e-3)
    expected = before * threshold / before.max() if granularity == "tensor" else before.clamp(max=threshold)
    assert torch.allclose(after, expected, rtol=2e-3)
    # Rounding a group's scale to float16 may move a latent that lies on a threshold, one in thousands.
    changed = sum(int((a != layer.ternary()[0]).sum()) for a, (_, layer) in zip(codes, bit_linears(model), strict=True))
    assert changed <= 0.001 * sum(each.numel() for each in codes)


def test_logits_that_are_not_finite_or_not_over_are_left_alone() -> None:
    attention = build("llama").get_submodule("model.layers.0.self_attn")
    before = copy.deepcopy(attention.state_dict())
    assert clip_attention(attention, torch.tensor([math.nan, math.inf, 1.0, 2.0]), 2.0, 0.5) == 0
    assert all(torch.equal(value, before[name]) for name, value in attention.state_dict().items())


def test_t8_a_watch_is_there_once_whatever_happens_to_the_model() -> None:
    model = build("llama")

    def hooks() -> int:
        return sum(len(module._forward_hooks) for module in model.modules())

    watches = watch_logits(model)
    once = hooks()
    assert once == 3 * 2
    data = batch()
    expected = observe(model, watches, data)
    for _ in range(3):
        model.eval()
        model.train()
        assert all(torch.equal(a, b) for a, b in zip(expected, observe(model, watches, data), strict=True))
    again = watch_logits(model)
    assert hooks() == once
    for watch in again:
        watch.reset(active=False)
    forward(model, data)  # a probe outside of a step
    assert all(watch.maximum is None and not watch._states for watch in again)
    for watch in again:
        watch.detach()
    assert hooks() == 0


def test_watching_changes_neither_output_nor_gradient_and_a_copy_has_its_own_watch() -> None:
    data = batch()
    results = []
    for watched in (False, True):
        model = build("qwen3")
        watches = watch_logits(model) if watched else []
        twin = copy.deepcopy(model)
        for watch in watches:
            watch.reset(active=True)
        final = forward(model, data).final
        final.square().sum().backward()
        results.append((final.detach(), [p.grad for p in model.parameters() if p.grad is not None]))
        seen = [watch.maximum for watch in watches]
        twin(data.input_ids + 0 * data.input_ids)
        assert all(a is watch.maximum for a, watch in zip(seen, watches, strict=True))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_sees_the_same() -> None:
    model, data = build("llama").train(), batch()
    watches = watch_logits(model)
    expected = observe(model, watches, data)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for watch in watches:
        watch.reset(active=True)
    forward(model, data).final.square().sum().backward()
    for watch, each in zip(watches, expected, strict=True):
        assert watch.maximum is not None and torch.equal(watch.maximum, each)


def test_masks_that_cannot_be_read_are_refused() -> None:
    model = build("llama")
    watches = watch_logits(model)
    watches[0].reset(active=True)
    watch = watches[0]
    watch.keep("q_proj", torch.zeros(1, 4, 64))
    watch.keep("k_proj", torch.zeros(1, 4, 32))
    with pytest.raises(InputError, match="cannot read a mask of type str"):
        watch.measure(torch.zeros(1, 4, 64), None, "a block mask")
