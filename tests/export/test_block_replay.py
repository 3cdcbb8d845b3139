"""The engine decodes blocks as the torch reference does: every pass of it, in models that know what they say.

Each pass of the engine is compared with what the reference decides in the same state; rounding may decide only where
two values lie closer together than measured rounding noise moves them (`export.block_replay`).
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_toys import BLOCK, EOS, MASK, VARIANTS, checkpoint, diffusion_toy, packed, text
from wrinklefree.engine import Engine
from wrinklefree.errors import VerificationError
from wrinklefree.export import verify_written as export_module
from wrinklefree.export.block_replay import BlockAgreement, _slack, compare_block_decoding
from wrinklefree.export.export import export
from wrinklefree.models.block_decoding import DecodingSettings, Look, decode_blocks

# (length of the prompt, settings): shorter than a block, exactly one, within and at the end of sub-blocks.
CASES = [
    (3, DecodingSettings(1.0)),
    (16, DecodingSettings(0.9)),
    (37, DecodingSettings(0.9, sub_block=BLOCK)),
    (23, DecodingSettings(tokens_per_forward=3, sub_block=5)),
    (40, DecodingSettings(entropy_bound=0.5, sub_block=4)),
    (31, DecodingSettings(1.0, sub_block=BLOCK)),
]
TOKENS = 25  # of each case: 600 in all


def replayed(name: str, length: int, settings: DecodingSettings, **options: Any) -> BlockAgreement:
    engine = Engine.load(packed(name), threads=1, kv_type=options.pop("kv_type", "float32"))
    model, marker = diffusion_toy(name)
    return compare_block_decoding(engine, model, marker, text(40 + length, length), TOKENS, settings, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_pass_of_the_engine_is_the_references(name: str) -> None:
    for length, settings in CASES:
        found = replayed(name, length, settings)
        assert found.passed and found.tokens == TOKENS
        # The engine saves passes where a row cannot have changed; it never needs one more than the reference.
        assert found.forwards <= found.looks <= TOKENS
        blocks = -(-(length + TOKENS) // BLOCK) - length // BLOCK
        assert found.forwards <= blocks * BLOCK


def test_a_half_precision_cache_is_measured_too() -> None:
    assert replayed("fast_dllm", 21, DecodingSettings(), kv_type="float16").passed


def test_an_end_token_ends_both() -> None:
    """A stop within a block: the engine goes by its tokenizer's end token, the reference by the same."""
    model, marker = diffusion_toy("fast_dllm")
    engine = Engine.load(packed("fast_dllm"), threads=1, kv_type="float32")
    prompt = text(7, 56)  # texts end behind 63 letters
    found = compare_block_decoding(engine, model, marker, prompt, 40, DecodingSettings(0.5), ignore_eos=False)
    assert found.passed
    if found.tokens < 40:
        assert decode_blocks(model, marker, prompt, 40, DecodingSettings(0.5), [EOS]).ids[-1] == EOS


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fast_dllm", {"clean_half": "causal"}),
        ("llada", {"token_shift": True}),
        ("fast_dllm", {"block_size": 8}),
        ("causal", {"variant": "fast_dllm"}),
    ],
)
def test_an_engine_that_follows_another_rule_is_noticed(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """The packed directory's marker says something else than the model's."""
    shutil.copytree(packed(name), tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "config.json").read_text())
    config["wrinklefree"]["dlm"] |= changes
    (tmp_path / "wrong" / "config.json").write_text(json.dumps(config))
    engine = Engine.load(tmp_path / "wrong", threads=1, kv_type="float32")
    model, marker = diffusion_toy(name)
    # No text that it has learnt: there it is so sure that a wrong rule hardly shows.
    prompt = [(7 * i * i + 3 * i) % marker.mask_token_id for i in range(21)]
    assert not compare_block_decoding(engine, model, marker, prompt, 20, DecodingSettings(0.9)).passed


def test_export_verifies_block_decoding_and_refuses_an_engine_that_decodes_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = export(checkpoint("fast_dllm"), tmp_path / "out", threads=1, greedy_tokens=8)
    assert report.blocks is not None and report.blocks.passed and report.blocks.tokens == 8
    assert report.to_json()["blocks"]["forwards"] == report.blocks.forwards
    real = export_module.compare_block_decoding

    def other_rule(engine: Any, model: Any, marker: Any, *rest: Any, **options: Any) -> BlockAgreement:
        return real(engine, model, replace(marker, clean_half="causal"), *rest, **options)

    monkeypatch.setattr(export_module, "compare_block_decoding", other_rule)
    with pytest.raises(VerificationError, match="does not decode blocks like the source"):
        export(checkpoint("fast_dllm"), tmp_path / "wrong", threads=1, greedy_tokens=20)
    assert not (tmp_path / "wrong").exists()


def test_how_far_values_must_move() -> None:
    """Four positions with log odds 3, 1, 0 and -1 (of the best of two tokens), their entropies rising."""
    odds = torch.tensor([3.0, 1.0, 0.0, -1.0])
    look = Look.of([0, 1, 2, 3], [], torch.stack([odds.abs(), torch.zeros(4), torch.full((4,), -math.inf)], dim=1))

    def slack(decided: set[int], **settings: Any) -> float:
        return _slack(look, decided, DecodingSettings(**settings))[0]

    at = 1 / (1 + math.exp(-2.0))  # the threshold, as log odds, is 2
    assert slack({0}, threshold=at) == pytest.approx(0.0)
    assert slack({0, 1}, threshold=at) == pytest.approx(1.0)
    assert slack({1}, threshold=at) == pytest.approx(1.0)  # both move by 1: then the first is below the threshold
    assert slack({0, 1, 2, 3}, threshold=at) == pytest.approx(2.0)
    assert slack(set(), threshold=at) == math.inf
    assert slack({0, 1}, threshold=1.0) == math.inf and slack({1}, threshold=1.0) == pytest.approx(1.0)
    assert slack({0, 2}, tokens_per_forward=2) == pytest.approx(0.5)
    assert slack({0}, tokens_per_forward=2) == math.inf
    entropy = look.entropy.tolist()
    assert slack({0, 1}, entropy_bound=entropy[0]) == pytest.approx(0.0)
    assert slack({0}, entropy_bound=entropy[0] + 0.1) == pytest.approx(0.1)
    assert slack({1}, entropy_bound=0.0) == pytest.approx((entropy[1] - entropy[0]) / 2)
    assert MASK not in look.best
