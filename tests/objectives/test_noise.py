"""The noised view: what is masked, where it lies, which state predicts it, and that nothing leaks.

References: plain loops over the tokens of a row, and decoding, whose forward training must equal.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from train_toys import VOCABULARY, pack, random_documents, toy_batch, toy_model

from wrinklefree.data.batch import IGNORE_INDEX, TokenBatch
from wrinklefree.errors import InputError
from wrinklefree.models.block_states import decoding_batch
from wrinklefree.models.forward import forward
from wrinklefree.models.mask_token import DiffusionMarker
from wrinklefree.objectives.noise import CLEAN_HALF, MASKED, Diffusion, NoisedBatch, noised

MASK = VOCABULARY - 1
SETTINGS = {
    "fast_dllm": Diffusion(block_size=4),
    "llada in blocks": Diffusion("llada", block_size=4),
    "llada": Diffusion("llada", block_size=None),
    "causal": Diffusion("causal", block_size=4),
    "causal clean half": Diffusion(block_size=4, clean_half="causal", whole_blocks=False),
    "no shift": Diffusion(block_size=5, token_shift=False, complementary=False),
}


def documents() -> TokenBatch:
    """Three rows; lengths that are multiples of 4, that are not, of 1, and padding; no token is MASK."""
    rows = [random_documents([9, 1, 10], 3), random_documents([14], 4), random_documents([8, 4, 12], 5)]
    return pack([[[t % (MASK - 1) for t in d] for d in row] for row in rows], 24).numbered(7)


def view_of(name: str, seed: int = 0, batch: TokenBatch | None = None) -> NoisedBatch:
    return noised(batch or documents(), SETTINGS[name], MASK, seed)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_token_lies_once_in_each_view_and_blocks_stay_within_documents(name: str) -> None:
    clean, view, settings = documents(), view_of(name), SETTINGS[name]
    views, slots = settings.num_views, view.slots.shape[1]
    assert view.num_sequences == views * 3
    size = settings.block_size or 10**9
    for row in range(view.num_sequences):
        held = view.slots[row]
        tokens = held[held >= 0]
        real = torch.nonzero(clean.document_ids.flatten() >= 0)[:, 0]
        own = real[real // 24 == row % 3]
        assert torch.equal(tokens.sort().values, own)
        for slot in range(slots):
            token = int(held[slot])
            if token < 0:
                assert view.input_ids[row, slot] == MASK and view.labels[row, slot] == IGNORE_INDEX
                continue
            assert view.position_ids[row, slot] == clean.position_ids.flatten()[token]
            assert view.document_ids[row, slot] == clean.document_ids.flatten()[token]
            assert view.block_ids[row, slot] == clean.position_ids.flatten()[token] // size
            hidden = view.labels[row, slot] != IGNORE_INDEX
            assert view.input_ids[row, slot] == (MASK if hidden else clean.input_ids.flatten()[token])
        if settings.whole_blocks and settings.block_size:
            whole = view.document_ids[row, :slots].view(-1, size)
            assert (whole == whole[:, :1]).all()  # one document for each block, filled up to its size
    if settings.block_size:
        assert torch.equal(view.input_ids[:, slots:], clean.input_ids.repeat(views, 1))
        assert not view.noised[:, slots:].any() and view.noised[:, :slots].all()
    else:
        assert view.input_ids.shape == clean.input_ids.shape


@pytest.mark.parametrize("name", SETTINGS)
def test_complements_mask_each_token_once_and_first_tokens_and_padding_never(name: str) -> None:
    clean, settings = documents(), SETTINGS[name]
    may = clean.labels.flatten() != IGNORE_INDEX
    for seed in range(20):
        view = view_of(name, seed)
        times = torch.zeros(clean.labels.numel(), dtype=torch.int64)
        masked = view.labels[:, : view.slots.shape[1]] != IGNORE_INDEX
        times.index_add_(0, view.slots[masked], torch.ones(int(masked.sum()), dtype=torch.int64))
        assert not times[~may].any() and view.num_masked == int(times.sum())
        if settings.num_views == 2:
            assert torch.equal(times, may.long()) and view.counted == int(may.sum())
        elif not settings.weighted:  # at least one token of each block that has one to mask
            blocks = view.block_ids[:, : view.slots.shape[1]]
            for row in range(3):
                own = view.slots[row] >= 0
                pairs = {
                    (int(d), int(b))
                    for d, b, s in zip(view.document_ids[row, : len(own)], blocks[row], view.slots[row], strict=True)
                    if s >= 0 and may[s]
                }
                got = {(int(view.document_ids[row, s]), int(blocks[row, s])) for s in torch.nonzero(masked[row])[:, 0]}
                assert got == pairs
            assert view.counted == view.num_masked
        else:
            assert view.counted == int(may.sum())


def test_the_ratio_of_a_block_is_uniform() -> None:
    """Blocks of 64 over many sequences: the share that is masked is spread evenly over 0 to 1."""
    batch = pack([[list(range(1, 60)) * 9] for _ in range(8)], 24 * 24)
    shares = []
    for number in range(12):
        view = noised(batch.numbered(number * 8), Diffusion(block_size=64, complementary=False), MASK, 0)
        shares.append((view.labels[:, :512] != IGNORE_INDEX).float().view(8, -1, 64).mean(dim=-1).flatten())
    share = torch.cat(shares)  # 768 blocks: a quarter's standard error is 0.016
    for quarter in range(4):
        inside = ((share > quarter / 4) & (share <= (quarter + 1) / 4)).float().mean()
        assert abs(float(inside) - 0.25) < 0.06


def test_weights_1_over_t_count_every_token_once_on_average() -> None:
    batch = documents()
    total = sum(view_of("llada in blocks", seed).selection().weights.sum() for seed in range(600))  # type: ignore[union-attr]
    expected = 600 * batch.num_targets
    # The variance of a sum with weights 1/t is about ln(1000) for each token: 4 standard errors.
    assert abs(float(total) / expected - 1) < 4 * (6.9 * 4 / expected) ** 0.5


def test_what_is_drawn_follows_from_seed_and_number_alone() -> None:
    batch = documents()
    together = view_of("fast_dllm")
    alone = noised(batch.rows(1, 2), SETTINGS["fast_dllm"], MASK, 0)
    width = alone.slots.shape[1]
    assert torch.equal(alone.labels[0, :width], together.labels[1, :width])
    assert torch.equal(view_of("fast_dllm").input_ids, together.input_ids)
    assert not torch.equal(view_of("fast_dllm", seed=1).input_ids, together.input_ids)
    other = noised(batch.numbered(8), SETTINGS["fast_dllm"], MASK, 0)
    assert not torch.equal(other.input_ids, together.input_ids)
    torch.manual_seed(99)  # no generator is involved
    assert torch.equal(view_of("fast_dllm").input_ids, together.input_ids)
    with pytest.raises(InputError, match="have no numbers"):
        noised(toy_batch(), SETTINGS["fast_dllm"], MASK, 0)


def expected_state(view: NoisedBatch, settings: Diffusion, row: int, slot: int) -> int:
    """Index, within the row, of the state that must predict the token in ``slot``."""
    position = int(view.position_ids[row, slot])
    if not settings.shift:
        return slot
    if settings.block_size is None or position % settings.block_size:
        return slot - 1
    slots = view.slots.shape[1]
    token = int(view.slots[row, slot]) % 24
    return slots + token - 1  # the clean state of the block before


@pytest.mark.parametrize("name", SETTINGS)
def test_each_masked_token_is_predicted_by_the_right_state_of_student_and_teacher(name: str) -> None:
    clean, view, settings = documents(), view_of(name), SETTINGS[name]
    rows, width = view.selection(MASKED), view.input_ids.shape[1]
    assert rows.teacher is not None and len(rows.targets) == view.num_masked
    masked = torch.nonzero(view.labels != IGNORE_INDEX).tolist()
    wanted = {
        (row * width + expected_state(view, settings, row, slot), int(view.slots[row, slot])) for row, slot in masked
    }
    assert {(int(s), int(t) + 1) for s, t in zip(rows.states, rows.teacher, strict=True)} == wanted
    assert torch.equal(rows.targets, clean.input_ids.flatten()[rows.teacher + 1])
    assert (clean.document_ids.flatten()[rows.teacher] == clean.document_ids.flatten()[rows.teacher + 1]).all()
    assert (rows.weights is not None) == settings.weighted


def logits_of(model: torch.nn.Module, view: TokenBatch, states: Tensor) -> Tensor:
    with torch.no_grad():
        output = forward(model, view)
        logits: Tensor = output.head(output.final.flatten(0, 1)[states])
    return logits


@pytest.mark.parametrize("name", ["fast_dllm", "llada in blocks", "causal", "causal clean half", "no shift"])
def test_a_prediction_is_the_one_that_decoding_makes_and_sees_neither_itself_nor_later_blocks(name: str) -> None:
    """Each masked token's logits equal those of a forward over the finished blocks and the noised block alone."""
    settings, model = SETTINGS[name], toy_model(1)
    clean = documents()
    view = view_of(name)
    rows, width = view.selection(), view.input_ids.shape[1]
    ours = logits_of(model, view, rows.states)
    assert rows.teacher is not None and settings.block_size
    marker = DiffusionMarker(MASK, settings.block_size, settings.shift, settings.variant, settings.rule.clean)
    ids, documents_of = clean.input_ids.flatten(), clean.document_ids.flatten()
    checked = 0
    for k in range(0, len(rows.targets), 3):
        row, token = int(rows.states[k]) // width, int(rows.teacher[k]) + 1
        position = int(clean.position_ids.flatten()[token])
        first = token - position  # of its document
        start = position // settings.block_size * settings.block_size
        length = int((documents_of[first:] == documents_of[token]).long().cumprod(0).sum())
        slots = {int(t): s for s, t in enumerate(view.slots[row]) if t >= 0}
        end = start + settings.block_size if settings.whole_blocks else min(start + settings.block_size, length)
        block = [int(view.input_ids[row, slots[first + i]]) if i < length else MASK for i in range(start, end)]
        known = [int(t) for t in ids[first : first + start]] + block
        state = position - 1 if settings.shift else position
        alone = logits_of(model, decoding_batch(model, known, marker, start), torch.tensor([state]))
        torch.testing.assert_close(ours[k], alone[0], rtol=2e-4, atol=2e-4)
        checked += 1
    assert checked > 8


def test_the_clean_half_predicts_like_the_clean_batch_when_it_is_causal() -> None:
    model, clean = toy_model(1), documents()
    for name in ("causal", "causal clean half"):
        view = view_of(name)
        rows = view.selection(CLEAN_HALF)
        plain = clean.selection()
        torch.testing.assert_close(
            logits_of(model, view, rows.states), logits_of(model, clean, plain.states), rtol=2e-4, atol=2e-4
        )
        assert torch.equal(rows.targets, plain.targets)
        assert torch.equal(rows.teacher, plain.states)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"needs diffusion\.clean_half=causal"):
        view_of("fast_dllm").selection(CLEAN_HALF)


def test_labels_that_are_ignored_stay_visible() -> None:
    """Prompts of supervised data are never masked."""
    clean = documents()
    labels = clean.labels.clone()
    labels[:, :6] = IGNORE_INDEX
    view = view_of("fast_dllm", batch=replace(clean, labels=labels))
    assert view.counted == int((labels != IGNORE_INDEX).sum())
    assert set(view.selection().targets.tolist()) <= set(clean.input_ids[:, 6:].flatten().tolist())
    rows = view.selection()
    assert rows.teacher is not None and ((rows.teacher + 1) % 24 >= 6).all()


def test_everything_masked_has_no_complement() -> None:
    settings = Diffusion("causal", block_size=4, min_ratio=1.0)
    view = noised(documents(), settings, MASK, 0)
    assert settings.num_views == 1 and view.num_masked == documents().num_targets


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "fast_dlm"}, "did you mean 'fast_dllm'"),
        ({"block_size": 1}, "found 1, at least 2"),
        ({"block_size": None}, "needs variant=llada"),
        ({"variant": "llada", "block_size": None, "clean_half": "causal"}, "there is no clean half"),
        ({"min_ratio": 0.8, "max_ratio": 0.3}, "0 <= min_ratio <= max_ratio <= 1"),
        ({"variant": "llada", "complementary": True}, "does not go with the weights 1/t"),
        ({"min_ratio": 1.0, "complementary": True}, "masks everything"),
        ({"clean_half": "casual"}, "did you mean 'causal'"),
    ],
)
def test_wrong_settings_are_input_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Diffusion(**settings)
