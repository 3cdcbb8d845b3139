"""Joint passes over several slots against one call after the other: the same numbers to the last bit.

Equality holds because nothing of a token depends on its neighbours: integer products are exact, the float32 sums over
the groups of a row run in the same order whatever the number of tokens, and a query's keys are cut into ranges by
their number alone. The float32 sums of a head in float16 would: it takes its rows one at a time.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_models import TOYS, make_toy

from wrinklefree import _native
from wrinklefree.engine import Batch, BatchItem, Engine
from wrinklefree.errors import InputError

REFERENCE_TOYS = ("llama_group_64", "mistral_window")  # it is slow
MODELS_AND_KERNELS = [
    (name, kernels)
    for kernels in _native.kernels.runnable()
    for name in (REFERENCE_TOYS if kernels == "reference" else TOYS)
]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {name: make_toy(root / name, name) for name in TOYS}


def steps_of(seed: int, vocab_size: int) -> list[list[tuple[int, Any]]]:
    """Three steps of (sequence, tokens): prompts of many lengths, single tokens, both mixed."""
    rng = np.random.default_rng(seed)

    def some(count: int) -> Any:
        return rng.integers(0, vocab_size, count).astype(np.int32)

    return [
        [(0, some(1)), (1, some(7)), (2, some(70)), (3, some(2))],
        [(i, some(1)) for i in (3, 0, 2, 1)],
        [(4, some(200)), (0, some(1)), (1, some(30)), (5, some(40)), (2, some(1)), (3, some(1))],
        [(i, some(1)) for i in range(6)] + [(6, some(1)), (7, some(1)), (8, some(1))],
    ]


@pytest.mark.parametrize("kv_type", ["float16", "int8"])
@pytest.mark.parametrize(("name", "kernels"), MODELS_AND_KERNELS)
def test_joint_steps_equal_single_calls(toys: dict[str, Path], name: str, kernels: str, kv_type: str) -> None:
    model = _native.Model.load(str(toys[name]), kernels=kernels, threads=2, slots=9, kv_type=kv_type)
    steps = steps_of(1, model.vocab_size)
    single: list[list[Any]] = []
    for step in steps:
        single.append([])
        for slot, tokens in step:
            logits = np.empty((len(tokens), model.vocab_size), np.float32)
            model.forward(slot, tokens, logits)
            single[-1].append(logits)
    for slot in range(9):
        model.truncate(slot, 0)
    for step, wanted in zip(steps, single, strict=True):
        joint = np.empty((sum(len(tokens) for _, tokens in step), model.vocab_size), np.float32)
        model.forward_batch([slot for slot, _ in step], [tokens for _, tokens in step], [2] * len(step), joint)
        np.testing.assert_array_equal(joint, np.concatenate(wanted))


def test_a_long_context_is_the_same_in_company(tmp_path: Path, toys: dict[str, Path]) -> None:
    # Behind 256 positions a query's keys come in several ranges; a lone query gives each to a thread of its own.
    directory = toys["llama_tensor"]
    tokens = np.random.default_rng(3).integers(0, 256, 400).astype(np.int32)
    alone = _native.Model.load(str(directory), threads=1)
    wanted = np.empty((1, alone.vocab_size), np.float32)
    alone.forward(0, tokens[:399])
    alone.forward(0, tokens[399:], wanted)
    for others in (0, 1, 6, 12):
        model = _native.Model.load(str(directory), threads=3, slots=13)
        model.forward(0, tokens[:399])
        slots = list(range(others + 1))
        found = np.empty((len(slots), model.vocab_size), np.float32)
        model.forward_batch(slots, [tokens[399:]] * len(slots), [1] * len(slots), found)
        np.testing.assert_array_equal(found[0], wanted[0])


def test_batch_gives_the_rows_asked_for(toys: dict[str, Path]) -> None:
    engine = Engine.load(toys["qwen3"], slots=3)
    prompt = list(range(1, 30))
    wanted = engine.logits(prompt)
    with Batch(engine) as batch:
        a, b, c = batch.open(), batch.open(), batch.open()
        with pytest.raises(InputError, match="all 3 slots are in use"):
            batch.open()
        last, none, all_rows = batch.step(
            [BatchItem(a, prompt), BatchItem(b, prompt[:5], "none"), BatchItem(c, np.array(prompt), "all")]
        )
        np.testing.assert_array_equal(last, wanted[-1:])
        assert none.shape == (0, engine.vocab_size)
        np.testing.assert_array_equal(all_rows, wanted)
        assert [batch.length(slot) for slot in (a, b, c)] == [29, 5, 29]
        batch.truncate(a, 10)
        (again,) = batch.step([BatchItem(a, prompt[10:])])
        np.testing.assert_array_equal(again, last)
        assert batch.step([BatchItem(b, prompt[5:7], "none")])[0].shape == (0, engine.vocab_size)
        batch.close(b)
        assert batch.length(batch.open()) == 0
    assert engine.logits(prompt).shape == wanted.shape  # the slots are free again


def test_wrong_steps_change_nothing(toys: dict[str, Path]) -> None:
    engine = Engine.load(toys["llama_tensor"], slots=2, context=16)
    with Batch(engine) as batch:
        slot, other = batch.open(), batch.open()
        for items, message in (
            ([BatchItem(7, [1])], "slot: found 7"),
            ([BatchItem(slot, [1]), BatchItem(slot, [2], start=0)], f"slot {slot} occurs twice"),
            ([BatchItem(slot, [1]), BatchItem(other, [256])], "found token 256"),
            ([BatchItem(slot, [1]), BatchItem(other, [])], "found no token"),
            ([BatchItem(slot, [1]), BatchItem(other, [1] * 17)], "17 tokens are more than the context"),
            ([BatchItem(slot, [1], "some")], "want: found 'some'"),  # type: ignore[arg-type]
            ([], "found no item"),
        ):
            with pytest.raises(InputError, match=message):
                batch.step(items)
        assert (batch.length(slot), batch.length(other)) == (0, 0)


def test_int8_cache_stays_near_float32(toys: dict[str, Path]) -> None:
    # Keys and values off by half a step in 127: of the size of the activations' own rounding, which moves logits by
    # a fraction of their spread; a wrong scale or position moves them by several.
    tokens = [int(t) for t in np.random.default_rng(6).integers(0, 250, 60)]
    coarse = Engine.load(toys["qwen2"], kv_type="int8")
    full = Engine.load(toys["qwen2"], kv_type="float32")
    wanted = full.logits(tokens)
    errors = np.abs(coarse.logits(tokens) - wanted).max(axis=1) / wanted.std()
    assert 0 < errors.max() < 0.5
    assert coarse.kv_bytes < 0.6 * Engine.load(toys["qwen2"]).kv_bytes + 4096


def test_the_profile_of_a_token_adds_up(toys: dict[str, Path]) -> None:
    seconds, waits = Engine.load(toys["qwen3"], threads=1).decode_profile(3, start=4)
    assert {"attention", "head", "waiting"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
    assert seconds["head"] > 0
    assert waits <= 1  # the end of the pass; one thread waits for nobody


def test_the_profile_of_a_pass_adds_up(toys: dict[str, Path]) -> None:
    engine = Engine.load(toys["qwen3"], threads=1)
    start = time.perf_counter()
    seconds = engine.pass_profile(3, start=4, passes=5)
    assert 0 < 5 * sum(seconds.values()) <= time.perf_counter() - start
    assert seconds["rotate and store"] > 0  # a stage of its own with several rows
