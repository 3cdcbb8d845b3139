"""Decoding with kept keys and values against a forward of everything, and what sub-blocks leave stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_toys import VOCABULARY, documents, family_toy
from torch import nn

from wrinklefree.models.block_decoding import BlockDecoder, DecodingSettings, chosen, decode_blocks
from wrinklefree.models.block_states import CachedStates, FullStates
from wrinklefree.models.mask_token import DiffusionMarker
from wrinklefree.objectives.noise import Diffusion

MASK = VOCABULARY - 1
VARIANTS = {
    "fast_dllm": Diffusion(block_size=8),
    "fast_dllm, causal clean half": Diffusion(block_size=8, clean_half="causal"),
    "causal": Diffusion("causal", block_size=8),
    "llada": Diffusion("llada", block_size=8),
}
# Biases, QK-norm, norms of its own, layers of two kinds; a window has no meaning among noised tokens.
FAMILIES: dict[str, dict[str, Any]] = {"qwen2": {}, "qwen3": {}, "bitnet": {}, "gemma3": {"sliding_window": 64}}
# Keys and values in another order of summation: some hundred float32 terms of size one.
CLOSE: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}


def marker_of(name: str) -> DiffusionMarker:
    settings = VARIANTS[name]
    return DiffusionMarker(MASK, settings.block_size, settings.shift, settings.variant, settings.rule.clean)


def decoder(model: nn.Module, variant: str, sub_block: int | None, prompt: int = 13, **changes: Any) -> BlockDecoder:
    [ids] = documents(prompt)
    return BlockDecoder(model, marker_of(variant), ids, 30, DecodingSettings(sub_block=sub_block), **changes)


def side_by_side(one: BlockDecoder, two: BlockDecoder, settings: DecodingSettings) -> list[tuple[bool, float]]:
    """Decide in ``two`` what ``one`` decides; for each look whether all rows were computed, and the difference."""
    found = []
    while one.waiting:
        a, b = one.look(), two.look()
        assert a.positions == b.positions
        both = torch.isfinite(a.logits)
        assert torch.equal(both, torch.isfinite(b.logits))
        found.append((len(a.rows) == 8, float((a.logits - b.logits)[both].abs().max())))
        for each in (one, two):
            each.decide(chosen(a, settings))
    assert not two.waiting and one.answer == two.answer and one.forwards == two.forwards
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_keys_and_values_give_what_a_forward_of_everything_gives(family: str) -> None:
    model = family_toy(family, **FAMILIES[family])
    for variant in VARIANTS if family == "qwen3" else ["fast_dllm"]:
        cached, full = decoder(model, variant, 8, cached=True), decoder(model, variant, 8)
        assert isinstance(cached._states, CachedStates) and type(full._states) is FullStates
        differences = side_by_side(cached, full, DecodingSettings(tokens_per_forward=3))
        assert len(differences) > 9 and max(difference for _, difference in differences) < 5e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_sub_blocks_leave_the_rest_of_a_bidirectional_block_stale_until_the_next_begins(variant: str) -> None:
    """A causal model's results do not depend on later rows, so nothing is stale there."""
    model = family_toy("qwen3")
    full = decoder(model, variant, 4)
    full._states = FullStates(model, marker_of(variant))
    differences = side_by_side(decoder(model, variant, 4, cached=True), full, DecodingSettings(1.0))
    assert max(difference for whole, difference in differences if whole) < 5e-3
    stale = max(difference for whole, difference in differences if not whole)
    assert stale < 5e-3 if variant == "causal" else stale > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_finished_block_has_the_keys_and_values_of_a_clean_pass(variant: str) -> None:
    model = family_toy("qwen3")
    one = decoder(model, variant, 4, cached=True)
    while one.waiting:
        one.decide(chosen(one.look(), DecodingSettings(0.3)))
    fresh = CachedStates(model, marker_of(variant))
    finished = one._start  # the last block is never finished
    assert finished == 40 and MASK not in one.ids[:finished]
    fresh.finish(one.ids[:finished], 0, finished)
    fresh.compute(one.ids[:finished], [], finished)
    for layer, kept in one._states.store.layers.items():  # type: ignore[attr-defined]
        for ours, theirs in zip(kept, fresh.store.layers[layer], strict=True):
            torch.testing.assert_close(ours[:, :, :finished], theirs, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_t20_decoding_with_kept_keys_and_values_computes_the_prompt_once_and_blocks_again_and_again(
    variant: str,
) -> None:
    model = family_toy("llama")
    for prompt, threshold, sub_block in ((5, 1.0, 4), (24, 0.3, 8), (29, 1.0, 8)):
        [ids] = documents(prompt)
        settings = DecodingSettings(threshold, sub_block=sub_block)
        out = decode_blocks(model, marker_of(variant), ids, 20, settings, cached=True)
        blocks = -(-(prompt + 20) // 8) - prompt // 8
        assert len(out.ids) == 20 and out.forwards <= 20 <= blocks * 8
        # Each forward computes at most a block, and each block but the last is finished once.
        assert out.computed <= prompt // 8 * 8 + out.forwards * 8 + (blocks - 1) * 8
        assert out.computed <= prompt + blocks * (8 + 1) * 8
        assert sub_block == 8 or out.computed <= prompt + blocks * 8 * 8
    assert decode_blocks(model, marker_of("causal"), ids, 20, settings).computed > out.computed


def test_positions_are_decided_from_sub_block_to_sub_block_and_all_rows_of_a_block_exist() -> None:
    one = decoder(family_toy("llama"), "fast_dllm", 4, prompt=13)
    seen = []
    while one.waiting:
        look = one.look()
        seen.append((look.positions, look.rows))
        one.decide({place: 5 for place in look.positions[:2]})
    whole = list(range(8, 16))
    assert seen[:2] == [([13, 14, 15], whole), ([15], [11, 12, 13, 14, 15])]
    assert seen[2:4] == [([16, 17, 18, 19], list(range(16, 24))), ([18, 19], [16, 17, 18, 19])]  # nothing before it
    assert seen[4][1] == list(range(16, 24)) and seen[5] == ([22, 23], [19, 20, 21, 22, 23])
    assert seen[-2] == ([40, 41, 42], list(range(40, 48)))  # the limit is 43, the block's end is not
    assert one.answer == [5] * 30


def test_nothing_behind_an_end_token_is_waited_for() -> None:
    [ids] = documents(13)
    for end in (15, 18):
        one = BlockDecoder(
            family_toy("llama"), marker_of("fast_dllm"), ids, 30, DecodingSettings(sub_block=4), eos_ids=[2]
        )
        while one.waiting:
            look = one.look()
            last = look.positions[-1]  # backwards, so that the end token comes before what it stands behind
            one.decide({last: 2 if last == end else 5})
            assert last != end or all(place < end for place in one.waiting)
        assert one.answer == [5] * (end - 13) + [2]
    # An end token of the prompt ends nothing.
    out = decode_blocks(family_toy("llama"), marker_of("fast_dllm"), [5, 2, 7], 10, eos_ids=[2])
    assert out.ids


def test_the_entropy_bound_leaves_out_the_largest_and_ties_go_to_the_lower_position() -> None:
    one = decoder(family_toy("llama"), "fast_dllm", None, prompt=8)
    look = one.look()
    fields = {"probability": torch.tensor([0.5, 0.9, 0.9, 0.2] * 2), "entropy": torch.tensor([0.3, 0.1, 0.1, 0.4] * 2)}
    for name, values in fields.items():
        object.__setattr__(look, name, values)

    def places(**settings: Any) -> list[int]:
        return [position - 8 for position in chosen(look, DecodingSettings(**settings))]

    assert places(entropy_bound=0.0) == [1]
    assert places(entropy_bound=0.25) == [1, 2, 5]  # 0.1 + 0.1, and the largest, 0.1, does not count
    assert places(entropy_bound=0.41) == [0, 1, 2, 5, 6]
    assert places(entropy_bound=9.0) == list(range(8))
    assert places(tokens_per_forward=3) == [1, 2, 5] and places(tokens_per_forward=99) == list(range(8))
    assert places(threshold=1.0) == [1] and places(threshold=0.9) == [1]
    assert places(threshold=0.89) == [1, 2, 5, 6] == places(threshold=0.5) and places(threshold=0.0) == list(range(8))


def test_what_is_drawn_counts_with_its_own_probability() -> None:
    """Draws are asked for in rising order, with what is known so far; only the confident ones stay."""
    model, asked = family_toy("llama"), []

    def second(logits: torch.Tensor, known: Any) -> int:
        asked.append((int(torch.isinf(logits).sum()), list(known)))
        return int(logits.topk(2).indices[1])

    [ids] = documents(13)
    settings = DecodingSettings(0.45)
    out = decode_blocks(model, marker_of("fast_dllm"), ids, 12, settings, draw=second)
    assert len(out.ids) == 12 and out.forwards > 6  # a second best seldom has more than 0.45
    assert asked[0] == (1, ids) and all(known[:13] == ids and MASK not in known for _, known in asked)
    one = decoder(model, "fast_dllm", 8)
    look = one.look()
    tokens = [int(row.topk(2).indices[1]) for row in look.logits]
    expected = look.logits.softmax(dim=-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(look.probability_of(tokens), expected)
    best = int(expected.argmax())
    assert chosen(look, DecodingSettings(1.0), tokens) == {look.positions[best]: tokens[best]}


def test_padding_is_never_chosen_unless_it_ends_texts() -> None:
    for eos, banned in ((2, [MASK, 7]), (7, [MASK])):
        model = family_toy("llama", pad_token_id=7, eos_token_id=eos)
        look = decoder(model, "fast_dllm", None).look()
        assert torch.isinf(look.logits).nonzero()[:, 1].unique().tolist() == sorted(banned)
