"""The likelihood bound of block-diffusion models.

References: enumeration of all masks with the batch that decoding sees; a model whose losses are known; plain counting.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from train_toys import VOCABULARY, toy_model

from wrinklefree.errors import InputError
from wrinklefree.eval.diffusion import Ids, Losses, Masks, block_numbers, block_values, bound, draw
from wrinklefree.eval.masked_losses import torch_masked_losses
from wrinklefree.eval.text import EvaluationText, Window
from wrinklefree.models.block_states import decoding_batch
from wrinklefree.models.forward import forward
from wrinklefree.models.mask_token import DiffusionMarker

MASK = VOCABULARY - 1
MARKERS = {
    "fast_dllm": DiffusionMarker(MASK, 3, True, "fast_dllm", "block_causal"),
    "causal clean half": DiffusionMarker(MASK, 3, True, "fast_dllm", "causal"),
    "causal": DiffusionMarker(MASK, 3, True, "causal", "causal"),
    "llada in blocks": DiffusionMarker(MASK, 3, False, "llada", "block_causal"),
    "llada": DiffusionMarker(MASK, None, False, "llada", "block_causal"),
}
TEXT = np.array([7, 21, 3, 3, 40, 11, 9, 30])  # blocks of 3: the last has two tokens, the first predicts two


def text_of(*windows: list[int] | np.ndarray[Any, Any], stride: int = 8) -> EvaluationText:
    tokens = sum(map(len, windows))
    return EvaluationText("toy", tuple(Window(np.asarray(w), 1) for w in windows), 8, stride, tokens, 2 * tokens)


def loss_when_decoding(model: Any, marker: DiffusionMarker, ids: Ids, start: int, masked: tuple[int, ...]) -> Losses:
    """Return the losses of the masked tokens of one block, from the forward that decoding makes of it."""
    size = marker.block_size or len(ids)
    seen = [*ids[: start + size], *[MASK] * (start + size - len(ids))]
    for place in masked:
        seen[place] = MASK
    with torch.no_grad():
        output = forward(model, decoding_batch(model, seen, marker, start))
        rows = output.head(output.final[0, [i - 1 if marker.token_shift else i for i in masked]]).double()
    rows[:, MASK] = -torch.inf
    return -rows.log_softmax(dim=-1)[range(len(masked)), ids[list(masked)]].numpy()


def enumerated(model: Any, marker: DiffusionMarker, ids: Ids) -> float:
    """Return the bound of a text, summed over all masks of all blocks: no random number."""
    total = 0.0
    for start in range(0, len(ids), marker.block_size or len(ids)):
        members = range(max(start, 1), min(start + (marker.block_size or len(ids)), len(ids)))
        for number in range(1, len(members) + 1):
            sets = list(itertools.combinations(members, number))
            sums = [float(loss_when_decoding(model, marker, ids, start, masked).sum()) for masked in sets]
            total += math.fsum(sums) / len(sets) / number  # P(l) = 1 / L cancels the L of L / l
    return total


@pytest.mark.parametrize("name", MARKERS)
def test_the_estimate_is_the_enumeration_within_its_error(name: str) -> None:
    model, marker = toy_model(2, initializer_range=0.3), MARKERS[name]
    ids = TEXT[:6] if marker.block_size is None else TEXT  # one block of eight has 127 masks
    exact = enumerated(model, marker, ids) / (len(ids) - 1)
    found = bound(torch_masked_losses(model, marker), text_of(ids), marker.block_size, samples=400, seed=5)
    assert 0 < found.standard_error < 0.1 * exact
    assert abs(found.loss - exact) < 4 * found.standard_error
    assert found.tokens == len(ids) - 1 and found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss / math.log(2) / 2)


@pytest.mark.parametrize("name", MARKERS)
def test_masked_losses_are_those_of_decodings_forward(name: str) -> None:
    model, marker = toy_model(2), MARKERS[name]
    blocks = block_numbers(len(TEXT), marker.block_size)
    masks = np.stack([draw(blocks, 0, 0, sample) for sample in range(4)])
    found = torch_masked_losses(model, marker)(TEXT, masks)
    for mask, row in zip(masks, found, strict=True):
        for block in range(int(blocks.max()) + 1):
            masked = tuple(np.flatnonzero(mask & (blocks == block)))
            expected = loss_when_decoding(model, marker, TEXT, block * (marker.block_size or 0), masked)
            np.testing.assert_allclose(row[list(masked)], expected, rtol=2e-5)
    assert not found[~masks].any()


def test_the_standard_error_is_the_spread_of_estimates() -> None:
    model, marker = toy_model(2), MARKERS["fast_dllm"]
    losses = torch_masked_losses(model, marker)
    reports = [bound(losses, text_of(TEXT[:5]), 3, samples=4, seed=seed) for seed in range(60)]
    spread = float(np.std([report.loss for report in reports], ddof=1))
    mean = float(np.sqrt(np.mean([report.standard_error**2 for report in reports])))
    assert 0.7 < mean / spread < 1.4  # 60 estimates of a spread are good to about a tenth


def test_tokens_that_do_not_depend_on_masks_give_their_sum() -> None:
    own = np.linspace(0.1, 3.0, 200)
    report = bound(lambda ids, masks: masks * own[: len(ids)], text_of(np.arange(200)), 200, samples=400)
    assert report.loss == pytest.approx(own[1:].mean(), abs=4 * report.standard_error)
    equal = bound(lambda ids, masks: 2.5 * masks, text_of(np.arange(50)), 8, samples=2)
    assert equal.loss == pytest.approx(2.5) and equal.standard_error == pytest.approx(0.0, abs=1e-12)


def test_masks_have_uniform_numbers_and_every_set_is_as_likely() -> None:
    blocks = block_numbers(9, 4)
    assert blocks.tolist() == [-1, 0, 0, 0, 1, 1, 1, 1, 2]
    masks = np.stack([draw(blocks, 3, 1, sample) for sample in range(1200)])
    assert not masks[:, 0].any() and masks[:, 8].all()
    counts = np.bincount(masks[:, 4:8].sum(axis=1), minlength=5)
    assert counts[0] == 0 and abs(counts[1:] - 300).max() < 5 * math.sqrt(300)
    pairs = masks[masks[:, 4:8].sum(axis=1) == 2][:, 4:8]
    codes = np.unique(pairs @ [1, 2, 4, 8], return_counts=True)[1]
    assert len(codes) == 6 and abs(codes - len(pairs) / 6).max() < 5 * math.sqrt(len(pairs) / 6)
    assert (draw(blocks, 3, 1, 7) == masks[7]).all() and len({tuple(mask) for mask in masks[:50]}) > 20


def test_t16_mask_and_banned_tokens_have_no_probability() -> None:
    model = toy_model(1, tie_word_embeddings=False)
    head: Any = model.get_submodule("lm_head").weight
    masks = np.ones((1, len(TEXT)), bool)
    masks[0, 0] = False
    before = torch_masked_losses(model, MARKERS["causal"])(TEXT, masks)
    with torch.no_grad():
        head[MASK] = 50.0 * head[5]
    assert (torch_masked_losses(model, MARKERS["causal"])(TEXT, masks) == before).all()
    fewer = torch_masked_losses(model, MARKERS["causal"], never=[5])(TEXT, masks)
    assert (fewer[0, 1:] < before[0, 1:]).all()


def test_an_infinite_loss_is_named_and_wrong_settings_are_input_errors() -> None:
    def infinite(ids: Ids, masks: Masks) -> Losses:
        return np.where(masks & (np.arange(len(ids)) == 4), np.inf, 0.0)

    with pytest.raises(ArithmeticError, match="toy, window 1 of 1"):
        bound(infinite, text_of(TEXT), 3)
    assert np.isinf(block_values(np.array([[0, np.inf]]), np.array([[False, True]]), np.array([-1, 0]))).all()
    zero = lambda ids, masks: np.zeros(masks.shape)  # noqa: E731
    for arguments, message in (
        ((text_of(TEXT, stride=4), 3), "stride 4"),
        ((text_of(TEXT), 1), "block size: found 1"),
        ((text_of(TEXT), 3, 1), "samples: found 1"),
    ):
        with pytest.raises(InputError, match=message):
            bound(zero, *arguments)  # type: ignore[arg-type]
