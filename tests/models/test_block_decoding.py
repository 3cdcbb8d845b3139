"""Decoding of toys that know a language; the MASK token and the marker of a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_toys import write_toy
from torch import Tensor, nn
from train_toys import toy_model

import diffusion_toys
from diffusion_toys import MASK
from wrinklefree.errors import InputError
from wrinklefree.models.block_decoding import DecodingSettings, decode_blocks
from wrinklefree.models.mask_token import MASK_TOKEN, DiffusionMarker, add_mask_token
from wrinklefree.objectives.noise import Diffusion

TEXT = [letter for word in diffusion_toys.WORDS for letter in word]  # said over and over, where nothing jumps
SMALL = {"fast_dllm": Diffusion(block_size=4), "causal": Diffusion("causal", block_size=4)}


def marker_of(settings: Diffusion) -> DiffusionMarker:
    return DiffusionMarker(MASK, settings.block_size, settings.shift, settings.variant, settings.rule.clean)


@pytest.fixture(scope="module", params=["fast_dllm", "causal", "llada"])
def learned(request: pytest.FixtureRequest) -> tuple[nn.Module, DiffusionMarker]:
    return diffusion_toys.diffusion_toy(request.param)


def test_what_was_learned_comes_back(learned: tuple[nn.Module, DiffusionMarker]) -> None:
    """The two sizes of the sub-blocks, prompts of a word up to one that ends with a block."""
    for known, sub_block in ((3, 8), (7, 16), (12, 8), (16, 16)):
        out = decode_blocks(*learned, TEXT[:known], 40, DecodingSettings(sub_block=sub_block))
        pairs = zip(out.ids, (TEXT * 2)[known : known + 40], strict=True)
        assert sum(ours == right for ours, right in pairs) >= 38


def test_at_threshold_1_every_forward_decides_one_token_and_below_it_fewer_forwards_do(
    learned: tuple[nn.Module, DiffusionMarker],
) -> None:
    one = decode_blocks(*learned, TEXT[:12], 28, DecodingSettings(1.0))
    assert one.ids == TEXT[12:40] and one.forwards == 28
    many = decode_blocks(*learned, TEXT[:12], 28, DecodingSettings(0.9))
    assert many.ids == one.ids and many.forwards <= 14
    pairs = decode_blocks(*learned, TEXT[:12], 28, DecodingSettings(tokens_per_forward=2))
    assert pairs.forwards == 14 and len(pairs.ids) == 28


def test_t16_mask_is_never_emitted_however_probable() -> None:
    model = toy_model(1, tie_word_embeddings=False)
    head: Tensor = model.get_submodule("lm_head").weight  # type: ignore[assignment]
    with torch.no_grad():
        head.copy_(0.01 * head)
        head[MASK] = torch.full_like(head[MASK], 5.0)
        embedding: Tensor = model.get_submodule("model.norm").weight  # type: ignore[assignment]
        embedding.abs_()
    for settings in SMALL.values():
        out = decode_blocks(model, marker_of(settings), [1, 2, 3], 20, DecodingSettings(0.0))
        assert len(out.ids) == 20 and MASK not in out.ids


def test_without_blocks_the_whole_text_is_one_canvas() -> None:
    settings = Diffusion("llada", block_size=None)
    out = decode_blocks(toy_model(1), marker_of(settings), [1, 2], 9, DecodingSettings(1.0))
    assert len(out.ids) == 9 and out.forwards == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": []}, "a prompt of 0 tokens"),
        ({"prompt": [1, MASK]}, f"holds the MASK token {MASK}"),
        ({"max_new_tokens": 0}, "max_new_tokens 0"),
        ({"prompt": [1] * 128}, "prompt of 128 tokens, whole blocks of 4 end at 128"),
        ({"context": 7, "prompt": [1] * 4}, "prompt of 4 tokens, whole blocks of 4 end at 4"),
    ],
)
def test_wrong_arguments_are_input_errors(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"prompt": [1], "max_new_tokens": 4, **arguments}
    with pytest.raises(InputError, match=message):
        decode_blocks(toy_model(1), marker_of(SMALL["causal"]), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 1.5}, r"threshold: found 1\.5"),
        ({"tokens_per_forward": 0}, "tokens_per_forward: found 0"),
        ({"sub_block": 0}, "sub_block: found 0"),
        ({"entropy_bound": -0.5}, r"entropy_bound: found -0\.5"),
        ({"entropy_bound": 0.5, "tokens_per_forward": 2}, "give one of them"),
    ],
)
def test_wrong_settings_are_input_errors(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodingSettings(**given)


@pytest.mark.parametrize("raw", [None, {"block_size": 32}, {**marker_of(Diffusion()).to_json(), "block_size": "32"}])
def test_t16_a_model_without_a_whole_marker_is_refused(raw: dict[str, Any] | None) -> None:
    with pytest.raises(InputError, match=r"there: (was not trained for block diffusion|its dlm marker)"):
        DiffusionMarker.of(raw, "there")


def test_the_marker_survives_json() -> None:
    for settings in (*SMALL.values(), Diffusion("llada", block_size=None)):
        marker = marker_of(settings)
        assert DiffusionMarker.of(marker.to_json(), "it") == marker and marker.rule == settings.rule


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 5])
def test_the_mask_token_is_new_starts_near_the_mean_and_takes_a_spare_row(
    tied: bool, spare: int, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_toy(tmp_path) / "model")
    size = len(tokenizer)
    model = toy_model(1, vocab_size=size + spare, tie_word_embeddings=tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state = torch.random.get_rng_state()
    mask_id = add_mask_token(model, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert mask_id == size == tokenizer.mask_token_id and tokenizer.mask_token == MASK_TOKEN
    assert tokenizer(f"a{MASK_TOKEN}b")["input_ids"].count(mask_id) == 1
    rows = max(size + spare, size + 1)
    assert model.config.vocab_size == rows  # type: ignore[union-attr]
    tables = ["model.embed_tokens"] if tied else ["model.embed_tokens", "lm_head"]
    assert (model.get_submodule("lm_head").weight is model.get_submodule("model.embed_tokens").weight) == tied
    for table in tables:
        weight: Tensor = model.get_submodule(table).weight.detach()  # type: ignore[assignment, operator]
        old = before[f"{table}.weight"]
        assert weight.shape[0] == rows and torch.equal(weight[:size], old[:size])
        assert torch.equal(weight[size + 1 :], old[size + 1 :])
        off = (weight[mask_id] - old[:size].mean(dim=0)) / old[:size].std(dim=0)
        assert 0.03 < off.abs().max() < 0.4  # a tenth of a standard deviation, not a random row
    other = toy_model(1, vocab_size=size + spare, tie_word_embeddings=tied)
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    add_mask_token(other, again)
    assert again.get_vocab() == tokenizer.get_vocab()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)  # teacher and student get the same row
