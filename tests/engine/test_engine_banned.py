"""Tokens that a diffusion model never gives out: its MASK, and padding that ends no text.

With a marker in config.json they have the logit minus infinity in every output, and every other number is that of the
same weights without the marker, to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_models import add_tokenizer, make_toy

from wrinklefree import _native
from wrinklefree.artifact.packed_reader import packed_parts
from wrinklefree.engine import Batch, BatchItem, Engine, SamplingParams
from wrinklefree.errors import FormatError, InputError

MASK, PAD, END = 250, 7, 9
MARKER = {
    "mask_token_id": MASK,
    "block_size": 8,
    "token_shift": True,
    "variant": "fast_dllm",
    "clean_half": "block_causal",
}
HEADS = ("llama_tensor", "q6_head", "untied_q4_head", "untied_f16_head")


def marked(directory: Path, name: str, marker: Any = MARKER, **changes: Any) -> Path:
    """A toy with a marker and other entries of its config.json changed."""
    made = make_toy(directory, name)
    config = json.loads((made / "config.json").read_text())
    config["wrinklefree"]["dlm"] = marker
    (made / "config.json").write_text(json.dumps({**config, **changes}))
    return made


@pytest.mark.parametrize("name", HEADS)
def test_t16_mask_and_padding_never_come_out(tmp_path: Path, name: str) -> None:
    # Trap: the row of MASK starts as a mean of all tokens, so that it is a good answer to any question.
    plain = Engine.load(make_toy(tmp_path / "plain", name), threads=1)
    engine = Engine.load(marked(tmp_path / "marked", name, pad_token_id=PAD, eos_token_id=[END, 3]), threads=1)
    assert plain.banned_tokens == () and set(engine.banned_tokens) == {MASK, PAD}
    tokens = [int(t) for t in np.random.default_rng(0).integers(0, 250, 40)]
    wanted = plain.logits(tokens)
    assert np.isfinite(wanted).all()
    wanted[:, [MASK, PAD]] = -np.inf
    np.testing.assert_array_equal(engine.logits(tokens), wanted)
    with Batch(engine) as batch:
        slot = batch.open()
        (rows,) = batch.choose([BatchItem(slot, tokens, "all")], logits=True)
    np.testing.assert_array_equal(rows.logits, wanted)
    np.testing.assert_array_equal(rows.tokens, wanted.argmax(axis=1))
    made = (
        engine.generate(tokens, SamplingParams(max_tokens=150, temperature=5.0, seed=1, ignore_eos=True)).run().tokens
    )
    assert not {MASK, PAD} & set(made) and len(set(made)) > 60


@pytest.mark.parametrize("threads", [1, 3])
def test_the_best_token_is_never_a_banned_one(tmp_path: Path, threads: int) -> None:
    # For each token that is some row's best: a model whose MASK is that token takes the next best one there.
    plain = Engine.load(make_toy(tmp_path / "plain", "qwen3"), threads=1)
    tokens = [int(t) for t in np.random.default_rng(1).integers(0, 250, 30)]
    wanted = plain.logits(tokens)
    for row, mask in list(enumerate(wanted.argmax(axis=1).tolist()))[:5]:
        directory = marked(tmp_path / str(row), "qwen3", {**MARKER, "mask_token_id": mask})
        with Batch(Engine.load(directory, threads=threads)) as batch:
            (found,) = batch.choose([BatchItem(batch.open(), tokens, "all")])
        assert mask not in found.tokens
        assert found.tokens[row] == wanted[row].argsort()[-2]


@pytest.mark.parametrize("where", ["config", "list", "generation", "tokenizer"])
def test_padding_that_ends_texts_is_given_out(tmp_path: Path, where: str) -> None:
    ends = {"config": 0, "list": [3, 0]}.get(where)
    directory = marked(tmp_path / "toy", "llama_tensor", pad_token_id=0, eos_token_id=ends)
    if where == "generation":
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 4]}))
    if where == "tokenizer":
        assert Engine.load(directory, threads=1).banned_tokens == (MASK, 0)
        add_tokenizer(directory)  # whose </s> has the id 0
    for engine in (Engine.load(directory, threads=1), Engine.from_parts(packed_parts(directory), threads=1)):
        assert engine.banned_tokens == (MASK,)
        assert np.isfinite(engine.logits([1, 2])[:, 0]).all()


@pytest.mark.parametrize(
    ("marker", "changes", "message"),
    [
        ([], {}, "dlm: found an array, an object is needed"),
        ({}, {}, "dlm: mask_token_id is missing"),
        ({**MARKER, "mask_token_id": 256}, {}, "mask_token_id: found 256, allowed is an integer from 0 to 255"),
        ({**MARKER, "mask_token_id": -1}, {}, "mask_token_id: found -1"),
        ({**MARKER, "mask_token_id": 2.5}, {}, "mask_token_id: found 2.5"),
        ({**MARKER, "block_size": 0}, {}, "block_size: found 0"),
        ({**MARKER, "block_size": "8"}, {}, "block_size: found"),
        ({**MARKER, "token_shift": 1}, {}, "token_shift: found 1, allowed is true or false"),
        ({**MARKER, "variant": "gpt"}, {}, "variant: found 'gpt', this engine knows fast_dllm, llada, causal"),
        ({**MARKER, "clean_half": None}, {}, "clean_half is missing"),
        (MARKER, {"pad_token_id": 256}, "pad_token_id: found 256"),
        (MARKER, {"eos_token_id": [1, "x"]}, "eos_token_id: found 'x', allowed is a token id or a list of them"),
        (MARKER, {"eos_token_id": MASK}, "the end token 250 is the model's MASK"),
    ],
)
def test_a_wrong_marker_is_named(tmp_path: Path, marker: Any, changes: Any, message: str) -> None:
    directory = marked(tmp_path / "toy", "llama_tensor", marker, **changes)
    with pytest.raises(FormatError) as caught:
        Engine.load(directory, threads=1)
    assert message in str(caught.value) and "config.json" in str(caught.value)


def test_a_wrong_generation_config_is_named(tmp_path: Path) -> None:
    directory = marked(tmp_path / "toy", "llama_tensor")
    for text, message in (("[", "generation_config.json"), ('{"eos_token_id": {}}', "eos_token_id: found an object")):
        (directory / "generation_config.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            Engine.load(directory, threads=1)


def test_without_a_marker_other_entries_mean_nothing(tmp_path: Path) -> None:
    # null, absent block sizes and -1 for "no padding" are what files in the wild hold
    directory = marked(tmp_path / "a", "llama_tensor", None, pad_token_id=PAD, eos_token_id="odd")
    assert Engine.load(directory, threads=1).banned_tokens == ()
    directory = marked(tmp_path / "b", "llama_tensor", {**MARKER, "block_size": None}, pad_token_id=-1)
    assert Engine.load(directory, threads=1).banned_tokens == (MASK,)


def test_wrong_items_change_nothing(tmp_path: Path) -> None:
    engine = Engine.load(make_toy(tmp_path / "toy", "llama_tensor"), slots=2, context=400, threads=1)
    some = list(range(20))
    with Batch(engine) as batch:
        a, b = batch.open(), batch.open()
        batch.step([BatchItem(a, some, "none")])
        for items, message in (
            ([BatchItem(a, [1], start=21)], "start: found 21, slot 0 holds 20 positions; allowed are 0 to 20"),
            ([BatchItem(a, [1], start=-1)], "start: found -1, an integer from 0 on is needed"),
            ([BatchItem(a, [1], start=True)], "start: found True"),
            ([BatchItem(a, [1] * 390, start=11)], "390 tokens from position 11 on exceed the context of 400"),
            ([BatchItem(a, [1], block=0)], "block: found 0, an integer from 1 on is needed"),
            ([BatchItem(b, [1] * 300, block=300)], "300 tokens of one block must be computed together"),
            ([BatchItem(a, [1] * 310, block=280)], "260 tokens of one block must be computed together"),
            ([BatchItem(a, [1, 2], [1, 1])], "rising indices"),
            ([BatchItem(a, [1, 2], [2])], "rising indices"),
            ([BatchItem(a, [1, 2], [0.5])], "want: found"),  # type: ignore[list-item]
            ([BatchItem(a, [1, 2], start=4), BatchItem(a, [1], start=5)], "it must start at 6"),
            ([BatchItem(a, [1], start=4, block=8), BatchItem(a, [1], start=5)], "ends inside a block"),
        ):
            with pytest.raises(InputError, match=message):
                batch.step(items)
        assert (batch.length(a), batch.length(b)) == (20, 0)
        batch.step([BatchItem(b, [1] * 300, block=250)])
    for name in ("mistral_window", "gemma3"):
        engine = Engine.load(make_toy(tmp_path / name, name), threads=1)
        with Batch(engine) as batch, pytest.raises(InputError, match="layers with a sliding window"):
            batch.step([BatchItem(batch.open(), some, block=4)])


def test_the_extension_checks_what_it_is_given(tmp_path: Path) -> None:
    model = _native.Model.load(str(make_toy(tmp_path / "toy", "llama_tensor")), threads=1)
    ids, row = np.arange(3, dtype=np.int32), np.empty((1, 256), np.float32)
    choices = (np.empty(2, np.int32), np.empty(2, np.float32), np.empty(2, np.float32))
    for arguments, message in (
        (([0], [ids], [3], row), "wants: found 3"),
        (([0], [ids], [np.array([1, 0], np.int32)], np.empty((2, 256), np.float32)), "rows: found 0 at index 1"),
        (([0], [ids], [1]), r"logits: an array \[1, 256\] is needed"),
        (([0], [ids], [1], None, None, None, None, choices), r"choices: three arrays \[1\] are needed"),
        (([0], [ids], [1], row, [0, 1]), "must have the same length"),
    ):
        with pytest.raises(InputError, match=message):
            model.forward_batch(*arguments)
    assert model.length(0) == 0
