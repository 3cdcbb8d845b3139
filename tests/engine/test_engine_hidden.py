"""Hidden states of a pass against the NumPy reference, and in any company against the same tokens alone (bit for bit).

The tolerances are those of the logits: see test_engine_logits.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference_model import ReferenceModel
from toy_models import make_toy

from wrinklefree import _native
from wrinklefree.errors import InputError

TOYS = ("llama_row_odd_sizes", "untied_f16_head", "gemma3", "low_rank_subln_bias")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {name: make_toy(root / name, name) for name in TOYS}


def tokens_of(seed: int, count: int) -> Any:
    return np.random.default_rng(seed).integers(0, 250, count).astype(np.int32)


def hidden_of(model: Any, slot: int, tokens: Any, want: Any = 2, rows: int | None = None) -> Any:
    found = np.full((len(tokens) if rows is None else rows, model.hidden_size), np.nan, np.float32)
    model.forward_batch([slot], [tokens], [want], hidden=found, hidden_items=[True], starts=[0])
    return found


@pytest.mark.parametrize("kernels", list(_native.kernels.runnable()))
@pytest.mark.parametrize("name", TOYS)
def test_hidden_states_are_those_of_the_reference(toys: dict[str, Path], name: str, kernels: str) -> None:
    reference = ReferenceModel(toys[name], kv_dtype=np.float32)
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=1, kv_type="float32")
    compared = 0
    for seed in range(4):
        tokens = tokens_of(seed, 40)
        wanted = reference.hidden([int(token) for token in tokens])
        errors = np.abs(hidden_of(model, 0, tokens) - wanted).max(axis=1) / wanted.std()
        compared += reference.first_tie
        assert errors[: reference.first_tie].max(initial=0) < 1e-5
        assert errors.max() < 0.5
    assert compared >= 8


@pytest.mark.parametrize("threads", [1, 2])
def test_hidden_rows_and_logits_of_one_pass_are_those_of_passes_alone(toys: dict[str, Path], threads: int) -> None:
    # more than a pass has rows, so that the outputs go on from pass to pass; a single row; rows by index
    model = _native.Model.load(str(toys["gemma3"]), threads=threads, slots=4)
    long, short, one, last = tokens_of(1, 300), tokens_of(2, 40), tokens_of(3, 1), tokens_of(4, 30)
    rows = np.array([0, 3, 39], np.int32)
    each = [hidden_of(model, 0, long), hidden_of(model, 1, short, rows, 3), hidden_of(model, 2, one)]
    logits = np.empty((1, model.vocab_size), np.float32)
    model.forward_batch([3], [last], [1], logits, starts=[0])
    hidden = np.full((304, model.hidden_size), np.nan, np.float32)
    mixed = np.empty((1, model.vocab_size), np.float32)
    order = [(0, long, 2), (3, last, 1), (1, short, rows), (2, one, 2)]
    slots, tokens, wants = (list(values) for values in zip(*order, strict=True))
    model.forward_batch(
        slots, tokens, wants, mixed, starts=[0] * 4, hidden=hidden, hidden_items=[True, False, True, True]
    )
    np.testing.assert_array_equal(hidden, np.concatenate(each))
    np.testing.assert_array_equal(mixed, logits)


def test_wrong_arrays_are_refused(toys: dict[str, Path]) -> None:
    model = _native.Model.load(str(toys["untied_f16_head"]), threads=1)
    tokens = tokens_of(1, 5)
    for wrong in (None, np.empty((4, 64), np.float32), np.empty((5, 63), np.float32)):
        with pytest.raises(InputError, match=r"hidden: an array \[5, 64\] is needed"):
            model.forward_batch([0], [tokens], [2], hidden=wrong, hidden_items=[True])
    with pytest.raises(InputError, match="hidden_items must have the same length"):
        model.forward_batch([0], [tokens], [0], hidden_items=[True, True])
    assert model.length(0) == 0


@pytest.mark.parametrize("kv_type", ["float16", "float32", "int8"])
@pytest.mark.parametrize("name", ["gemma3", "low_rank_subln_bias"])
def test_a_copied_prefix_is_the_computed_one(toys: dict[str, Path], name: str, kv_type: str) -> None:
    # Behind a prefix copied to a slot that held something else: the logits of a slot that computed all of it.
    model = _native.Model.load(str(toys[name]), threads=1, slots=3, kv_type=kv_type, context=128)
    prompt, other, more = tokens_of(1, 90), tokens_of(2, 110), tokens_of(3, 10)

    def continued(slot: int) -> Any:
        logits = np.empty((len(more), model.vocab_size), np.float32)
        model.forward(slot, more, logits)
        return logits

    for positions in (0, 1, 37, 90):
        for slot, tokens in ((0, prompt), (1, other), (2, prompt)):
            model.truncate(slot, 0)
            model.forward(slot, tokens, None)
        model.truncate(2, positions)
        model.copy_prefix(0, 1, positions)
        assert (model.length(0), model.length(1)) == (90, positions)
        model.truncate(0, 0)
        model.forward(0, other, None)  # what the source goes on with is its own
        np.testing.assert_array_equal(continued(1), continued(2))


def test_copies_that_cannot_be_are_refused(toys: dict[str, Path]) -> None:
    model = _native.Model.load(str(toys["untied_f16_head"]), threads=1, slots=2)
    model.forward(0, tokens_of(1, 5), None)
    for positions in (-1, 6):
        with pytest.raises(InputError, match=f"copy_prefix: found {positions}, slot 0 holds 5 positions"):
            model.copy_prefix(0, 1, positions)
    for source, target in ((2, 0), (0, 2), (-1, 0)):
        with pytest.raises(InputError, match="this model has slots 0 to 1"):
            model.copy_prefix(source, target, 0)
    assert (model.length(0), model.length(1)) == (5, 0)
    model.copy_prefix(0, 0, 3)
    assert model.length(0) == 3
